"""`rle`: JSON with the COCO run lengths of every foreground class.

    {"model": ..., "version": ..., "size": [H, W], "threshold": ...,
     "classes": [{"name": ..., "area": ..., "bbox": [x, y, w, h], "mean_score": ...,
                  "rle": {"size": [H, W], "counts": "431N00021NO0"}}]}

`rle` is what `pycocotools.mask.decode` takes. Classes without a pixel are listed too, with `bbox`
and `mean_score` null. `mean_score` is the mean probability over the pixels of the class.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.encodings import _coco, _runs
from app.encodings._runs import Runs
from app.encodings.base import Decoded, Encoding, Shape, check_size, register
from app.errors import MalformedRequest
from app.types import Mask


def encode(mask: Mask) -> bytes:
    """Compact JSON in ASCII; the keys always stand in the same order."""
    answer = {
        "model": mask.model,
        "version": mask.version,
        "size": [mask.height, mask.width],
        "threshold": mask.threshold,
        "classes": [_describe(mask, index, runs) for index, runs in _runs.of_mask(mask).items()],
    }
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode("ascii")


def _describe(mask: Mask, index: int, runs: Runs) -> dict[str, Any]:
    area = runs.area
    return {
        "name": mask.classes[index].name,
        "area": area,
        "bbox": runs.bbox,
        "mean_score": _mean_score(mask, index, area),
        "rle": {"size": [mask.height, mask.width], "counts": _coco.to_text(runs.counts)},
    }


def _mean_score(mask: Mask, index: int, area: int) -> float | None:
    """Mean of p inside the class, to six places: the map itself has steps of 1/255."""
    if not area:
        return None
    assert mask.probability is not None
    inside = np.multiply(mask.probability[index], mask.plane(index).view(np.uint8))
    # 32 bits suffice for a row and add up faster than 64 would.
    total = int(np.add.reduce(inside, axis=1, dtype=np.uint32).sum(dtype=np.uint64))
    return round(total / (255 * area), 6)


def decode(data: bytes, shape: Shape | None = None) -> Decoded:
    """(C, H, W) bool, one plane per listed class; areas and boxes must agree with the runs."""
    try:
        answer = json.loads(data)
        height, width = _size(answer["size"])
        planes = [_plane(entry, height=height, width=width) for entry in answer["classes"]]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise MalformedRequest("RLE mask: not JSON of the expected shape") from exc
    if not planes:
        raise MalformedRequest("RLE mask: no classes")
    return np.stack(planes)


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    if type(height) is not int or type(width) is not int:
        raise TypeError("a size is two integers")
    check_size(height, width)
    return height, width


def _plane(entry: dict[str, Any], *, height: int, width: int) -> NDArray[np.bool_]:
    if _size(entry["rle"]["size"]) != (height, width):
        raise MalformedRequest("RLE mask: the size of a class is not the size of the mask")
    text = entry["rle"]["counts"]
    if not isinstance(text, str):
        raise TypeError("counts are a text")
    counts = _coco.to_counts(text, pixels=height * width)
    plane = _runs.paint(counts, height=height, width=width)
    runs = _runs.of_pixels(plane, order="F")
    if (entry["area"], entry["bbox"]) != (runs.area, runs.bbox):
        raise MalformedRequest("RLE mask: area or box does not agree with the runs")
    return plane


register(
    Encoding(
        name="rle",
        title="JSON with COCO run lengths, area, box and mean score per class",
        media_type="application/json",
        extension="json",
        write=encode,
        read=decode,
        needs_probability=True,
        overlapping=True,
    )
)
