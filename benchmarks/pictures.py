"""What benchmarks send: the shipped model's own sample, a photograph, in other sizes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent


def photograph() -> Image.Image:
    """512 x 512, a drone's view of houses."""
    newest = max((ROOT / "model_store" / "buildings").glob("[0-9]*"), key=lambda p: int(p.name))
    with Image.open(newest / "sample.jpg") as image:
        return image.convert("RGB")


def jpeg(width: int, height: int | None = None, *, quality: int = 90) -> bytes:
    """The photograph at that size as baseline JPEG, 4:2:0, as cameras and phones write."""
    out = io.BytesIO()
    size = (width, height or width)
    photograph().resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def views(side: int, *, quality: int = 90) -> list[bytes]:
    """Four different pictures of that side as JPEG: the photograph, mirrored and upside down."""
    whole = photograph().resize((side, side), Image.Resampling.BICUBIC)
    found = []
    for image in (whole, ImageOps.mirror(whole), ImageOps.flip(whole), whole.rotate(180)):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        found.append(out.getvalue())
    return found
