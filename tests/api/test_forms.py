"""Forms: what httpx, a browser or curl sends is read; what is wrong is said."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.forms import parse_form
from app.errors import BadParameter, EmptyBody, MalformedRequest, TernausError


def form(files: object = None, data: dict[str, str] | None = None) -> tuple[bytes, bytes]:
    """A form as httpx, which we did not write, sends it."""
    request = httpx.Request("POST", "http://x", files=files, data=data)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"].encode()


@given(st.binary(min_size=1, max_size=5000))
def test_file_arrives_byte_for_byte(data: bytes) -> None:
    parsed = parse_form(*form({"file": ("roof.jpg", data, "image/jpeg")}, {"format": "rle"}))
    assert parsed.file == data
    assert parsed.fields == {"format": "rle"}


def test_no_picture() -> None:
    with pytest.raises(EmptyBody, match="`file`"):
        parse_form(*form({"file": ("roof.jpg", b"", "image/jpeg")}))
    with pytest.raises(EmptyBody):
        parse_form(b"", b"multipart/form-data; boundary=x")


def test_picture_under_another_name() -> None:
    with pytest.raises(BadParameter, match="belongs into the part `file`, not `image`"):
        parse_form(*form({"image": ("roof.jpg", b"x", "image/jpeg")}))


def test_two_pictures() -> None:
    with pytest.raises(BadParameter, match="more than one `file`"):
        parse_form(*form([("file", ("a.jpg", b"x")), ("file", ("b.jpg", b"y"))]))


def test_too_many_parts() -> None:
    with pytest.raises(MalformedRequest, match="16 parts"):
        parse_form(*form({"file": ("a", b"x")}, {f"f{i}": "v" for i in range(20)}))


def test_long_field() -> None:
    with pytest.raises(BadParameter, match="`format` is longer"):
        parse_form(*form({"file": ("a", b"x")}, {"format": "p" * 2000}))


@pytest.mark.parametrize(
    "content_type", [b"multipart/form-data", b"multipart/form-data; boundary="]
)
def test_no_boundary(content_type: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_form(b"--x\r\n", content_type)


@given(st.binary(max_size=300))
def test_rubbish_gives_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(TernausError):
        parse_form(b"--x\r\n" + data, b"multipart/form-data; boundary=x")


def test_cut_short() -> None:
    body, content_type = form({"file": ("a.jpg", b"0123456789" * 50)})
    with pytest.raises(TernausError):
        parse_form(body[: len(body) // 2], content_type)
