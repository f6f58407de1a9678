"""Our mask encoders beside Pillow and pycocotools, side by side in one run.

    python -m benchmarks.encode                     # a table
    python -m benchmarks.encode --json results.json # and the numbers, with versions and machine

Rounds of all encoders alternate, so that other work on the machine slows all of them alike; the
fastest of the rounds counts. Each begins with the caches as its rival left them, as on a busy
server: called again and again, ours take about a third of the time at 512. Every peer starts from
what it would be given: Pillow from 0/255 bytes, pycocotools from a C-ordered array, ours from the
packed rows that the engine returns. Making the one from the other is charged to nobody.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from app.encodings import _coco, _runs
from app.encodings.base import get
from app.types import ClassSpec, Mask

SIZES = (512, 1024, 2048)
PACKAGES = ("numpy", "isal", "pillow", "opencv-python-headless", "pycocotools")


def blobs(side: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """(side, side) bool: a few large pieces whose edges are rough by some pixels."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((9, 9)).astype(np.float32)
    field = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    rough = cv2.GaussianBlur(random.standard_normal((side, side)).astype(np.float32), (0, 0), 2)
    pieces: NDArray[np.bool_] = field + 0.3 * rough > 0.2
    return pieces


def save_with_pillow(pixels: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


def encode_with_opencv(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def contenders(plane: NDArray[np.bool_]) -> dict[str, dict[str, Callable[[], int]]]:
    """Per kind of answer, encoders by name, ours first; each returns the size in bytes."""
    side = plane.shape[0]
    grey = plane * np.uint8(255)
    ones = plane.view(np.uint8)
    fortran = np.asfortranarray(ones)
    classes = (ClassSpec("road", (255, 0, 0)),)
    probability = np.where(plane, 204, 51).astype(np.uint8)[None]
    mask = Mask.from_planes(plane[None], "binary", classes, probability=probability)
    assert mask.bits is not None
    bits = mask.bits[0]

    def coco_text() -> str:
        return _coco.to_text(_runs.of_bits(bits, width=side).counts)

    assert coco_text().encode() == coco.encode(fortran)["counts"]

    return {
        "PNG": {
            "ours `png`": lambda: len(get("png").encode(mask)),
            "ours `png8`": lambda: len(get("png8").encode(mask)),
            "Pillow L, default": lambda: len(save_with_pillow(grey)),
            "Pillow L, level 1": lambda: len(save_with_pillow(grey, compress_level=1)),
            "Pillow 1, default": lambda: len(save_with_pillow(plane)),
            "Pillow 1, level 1": lambda: len(save_with_pillow(plane, compress_level=1)),
            "OpenCV 8-bit, default": lambda: len(encode_with_opencv(grey)),
        },
        "RLE": {
            "ours, counts": lambda: len(coco_text()),
            "ours `rle`, whole answer": lambda: len(get("rle").encode(mask)),
            "ours `kaggle`": lambda: len(get("kaggle").encode(mask)),
            "pycocotools": lambda: len(coco.encode(np.asfortranarray(ones))["counts"]),
            "pycocotools, cv2.transpose": lambda: len(coco.encode(cv2.transpose(ones).T)["counts"]),
            "pycocotools, already F": lambda: len(coco.encode(fortran)["counts"]),
        },
    }


def measure(
    encoders: dict[str, Callable[[], int]], *, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Name, fastest time in microseconds, size in bytes and ratio to the first, for each."""
    best = dict.fromkeys(encoders, float("inf"))
    sizes = {name: encode() for name, encode in encoders.items()}
    for _ in range(rounds):
        for name, encode in encoders.items():
            start = clock()
            encode()
            best[name] = min(best[name], clock() - start)
    unit = next(iter(best.values()))
    return [
        {
            "name": name,
            "microseconds": round(1e6 * seconds, 1),
            "bytes": sizes[name],
            "ratio": round(seconds / unit, 2),
        }
        for name, seconds in best.items()
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--json", type=Path, help="write the numbers to this file")
    asked = options.parse_args()
    cv2.setNumThreads(1)

    results = []
    for side in SIZES:
        plane = blobs(side)
        for kind, encoders in contenders(plane).items():
            rows = measure(encoders, rounds=asked.rounds, clock=time.perf_counter)
            results.append({"side": side, "kind": kind, "rows": rows})
            print(f"\n{kind}, {side} x {side}, {plane.mean():.0%} set")
            for row in rows:
                print(
                    f"  {row['name']:<28}{row['microseconds']:>12,.0f} us"
                    f"{row['ratio']:>8.2f} x{row['bytes']:>12,} bytes"
                )
    if asked.json:
        machine = {"machine": platform.machine(), "system": platform.system()}
        versions = {"python": platform.python_version()} | {n: version(n) for n in PACKAGES}
        report = {"machine": machine, "versions": versions, "results": results}
        asked.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
