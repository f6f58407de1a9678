"""Options: everything unknown is refused with the list of what is known."""

from __future__ import annotations

import pytest

from app.api.options import Asks, options
from app.encodings import base as encodings
from app.errors import BadParameter, NotAcceptable

ASKS = Asks()


def test_defaults() -> None:
    ask = ASKS.read(b"", None)
    assert (ask.format, ask.model, ask.threshold, ask.frame) == ("png", None, None, None)


@pytest.mark.parametrize("name", sorted(encodings.registry()))
def test_every_format_can_be_asked_for(name: str) -> None:
    assert ASKS.read(f"format={name}".encode(), None).format == name


def test_all_together() -> None:
    ask = ASKS.read(b"model=a%402&threshold=0.25&frame=3&background=%23ff8000&format=rle", None)
    assert (ask.model, ask.threshold, ask.frame, ask.background) == ("a@2", 0.25, 3, (255, 128, 0))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("treshold=0.5", "unknown parameter `treshold`; known: format, model, threshold"),
        ("format=jpeg", "unknown format `jpeg`; known: .*kaggle.*png"),
        ("threshold=1.5", "number from 0 to 1, not `1.5`"),
        ("threshold=nan", "number from 0 to 1"),
        ("threshold=x", "number from 0 to 1"),
        ("threshold=", "number from 0 to 1"),
        ("frame=-1", "whole number from 0"),
        ("background=red", "colour such as"),
        ("background=12345g", "colour such as"),
        ("model=", "`model` is empty"),
        ("threshold=0.5&threshold=0.6", "more than once"),
    ],
)
def test_wrong_ones_are_named(query: str, words: str) -> None:
    with pytest.raises(BadParameter, match=words):
        ASKS.read(query.encode(), None)


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        (None, "png"),
        ("", "png"),
        ("*/*", "png"),
        ("image/png", "png"),
        ("image/*", "png"),
        ("application/json", "rle"),
        ("text/csv", "kaggle"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", "png"),
        ("image/png;q=0.1, application/json;q=0.9", "rle"),
        ("application/*", "rle"),
    ],
)
def test_accept_header_decides(accept: str | None, name: str) -> None:
    assert ASKS.read(b"", accept).format == name


def test_query_beats_accept() -> None:
    assert ASKS.read(b"format=kaggle", "image/png").format == "kaggle"


def test_nothing_acceptable() -> None:
    with pytest.raises(NotAcceptable, match=r"video/mp4.*offered: image/png"):
        ASKS.read(b"", "video/mp4, image/png;q=0")


def test_form_fields_add_and_may_not_contradict() -> None:
    assert ASKS.read(b"", None, {"threshold": "0.3"}).threshold == 0.3
    assert ASKS.read(b"threshold=0.3", None, {"threshold": "0.30"}).threshold == 0.3
    with pytest.raises(BadParameter, match="differs"):
        ASKS.read(b"threshold=0.3", None, {"threshold": "0.4"})


def test_every_option_has_words_and_a_schema() -> None:
    for option in options().values():
        assert option.words
        assert option.schema["type"]
