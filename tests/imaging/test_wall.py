"""The wall: every foreign exception has one of ours, the most specific wins, ours pass."""

from __future__ import annotations

import pytest
from PIL import Image, UnidentifiedImageError

from app.errors import PictureDamaged, PictureDepth, PictureTooLarge
from app.imaging.wall import FOREIGN, wall


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_foreign_exception_is_mapped_with_its_cause(kind: type[Exception]) -> None:
    with pytest.raises(FOREIGN[kind], match=r"^PNG cannot be decoded: why$") as caught, wall("PNG"):
        raise kind("why")
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (UnidentifiedImageError("x"), PictureDamaged),
        (Image.DecompressionBombError("x"), PictureTooLarge),
        (Image.DecompressionBombWarning("x"), PictureDamaged),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), PictureDamaged),
        (RecursionError("x"), PictureDamaged),
        (IndexError("x"), PictureDamaged),
    ],
)
def test_descendants_find_their_ancestor(
    foreign: Exception, ours: type[PictureDamaged | PictureTooLarge]
) -> None:
    with pytest.raises(ours), wall("PNG"):
        raise foreign


def test_ours_pass_unchanged() -> None:
    with pytest.raises(PictureDepth, match=r"^as it was$"), wall("PNG"):
        raise PictureDepth("as it was")


def test_nameless_exception_is_named_by_its_class() -> None:
    with pytest.raises(PictureDamaged, match="EOFError"), wall("PNG"):
        raise EOFError


def test_long_and_many_lined_texts_become_one_short_line() -> None:
    with pytest.raises(PictureDamaged) as caught, wall("PNG"):
        raise ValueError("a\nb " * 1000)
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 250


def test_a_defect_of_ours_is_not_hidden() -> None:
    with pytest.raises(NameError), wall("PNG"):
        raise NameError("ours")
