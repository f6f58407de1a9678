"""Nothing but approved names becomes a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.names import (
    claim_mark,
    incoming_mark,
    is_file_name,
    is_name,
    mark_age_s,
    split_label,
    version_of,
)

START = "abcdefghijklmnopqrstuvwxyz0123456789"
NAMES = st.builds(str.__add__, st.sampled_from(START), st.text(START + "._-", max_size=63))
VERSIONS = st.integers(min_value=1, max_value=999_999_999)


@given(name=NAMES, version=VERSIONS)
def test_label_splits_into_what_it_was_made_of(name: str, version: int) -> None:
    assert split_label(f"{name}@{version}") == (name, version)
    assert split_label(name) == (name, None)


@given(text=st.text(max_size=80))
def test_accepted_name_is_one_plain_visible_part_of_a_path(text: str) -> None:
    if is_name(text) or is_file_name(text):
        assert text.isascii()
        assert text.isprintable()
        assert not text.startswith((".", "-"))
        assert not set(text) & set("/\\@: \n\0")


@given(text=st.text(max_size=12))
def test_version_is_written_in_one_way_only(text: str) -> None:
    version = version_of(text)
    assert version is None or (str(version) == text and version >= 1)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a/b", "a\\b", "A", "é", "a b", "a\n", ".hidden", "-x", "a@1", "x" * 65, "a\0"],
)
def test_name_is_refused(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize(
    "text", ["", "0", "01", "+1", "-1", "1.0", "v1", "1\n", "\u0661", "1" * 10]
)
def test_version_is_refused(text: str) -> None:
    assert version_of(text) is None


@pytest.mark.parametrize("label", ["", "@", "@1", "a@", "a@0", "a@1@2", "../a", "a/../b@1", "A@1"])
def test_label_is_refused(label: str) -> None:
    assert split_label(label) is None


def test_mark_tells_its_age_and_nothing_else_does() -> None:
    assert mark_age_s(incoming_mark(1000.9), 1060.0) == 60.0
    assert mark_age_s(claim_mark(1000.0), 1000.0) == 0.0
    assert incoming_mark(1.0) != incoming_mark(1.0)
    for other in ("1", ".git", ".incoming-", ".incoming-1-xyz", "incoming-1-0123456789abcdef"):
        assert mark_age_s(other, 0.0) is None
