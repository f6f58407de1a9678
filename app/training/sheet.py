"""A contact sheet of the best and the worst pictures: right in green, invented red, missed blue."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.training.evaluate import PictureScore, truth_of
from app.training.examples import Example
from app.training.scenes import Labels
from app.training.segmenters import Answer
from app.types import Pixels, Task

SIDE = 256
GAP = 6
LINE = 16
RIGHT, INVENTED, MISSED = (40, 200, 80), (230, 50, 50), (60, 110, 255)


@dataclass(frozen=True, slots=True, order=True)
class Frame:
    """A picture small enough to keep: its score, its name, and two views as PNG."""

    iou: float
    name: str
    plain: bytes
    marked: bytes


class Sheet:
    """Keeps the `rows` best and worst of what it is shown."""

    def __init__(self, task: Task, classes: int, *, rows: int = 4) -> None:
        self.task, self.classes, self.rows = task, classes, rows
        self._frames: list[Frame] = []

    def show(self, example: Example, score: PictureScore, labels: Labels, answer: Answer) -> None:
        """Take one in; a picture without a score has no place among best and worst."""
        if score.iou is None:
            return
        pixels = example.pixels()
        truth, valid = truth_of(labels, self.task, self.classes)
        frame = Frame(
            score.iou,
            example.name,
            _small(pixels),
            _small(marked(pixels, answer.planes & valid, truth & valid)),
        )
        self._frames = sorted([*self._frames, frame])
        if len(self._frames) > 2 * self.rows:
            self._frames = self._frames[: self.rows] + self._frames[-self.rows :]

    def png(self) -> bytes:
        """The sheet: worst on the left, best on the right."""
        worst = self._frames[: self.rows]
        best = [frame for frame in reversed(self._frames[-self.rows :]) if frame not in worst]
        height = max(1, len(worst), len(best)) * (SIDE + LINE + GAP) + LINE + GAP
        sheet = Image.new("RGB", (4 * SIDE + 5 * GAP, height), "white")
        draw = ImageDraw.Draw(sheet)
        for column, (title, frames) in enumerate((("worst", worst), ("best", best))):
            left = GAP + column * 2 * (SIDE + GAP)
            draw.text((left, 2), f"{title}: right green, invented red, missed blue", fill="black")
            for row, frame in enumerate(frames):
                top = LINE + GAP + row * (SIDE + LINE + GAP)
                draw.text((left, top), f"IoU {frame.iou:.3f}  {frame.name}"[:60], fill="black")
                for index, data in enumerate((frame.plain, frame.marked)):
                    with Image.open(io.BytesIO(data)) as image:
                        sheet.paste(image, (left + index * (SIDE + GAP), top + LINE))
        out = io.BytesIO()
        sheet.save(out, "PNG")
        return out.getvalue()


def marked(
    pixels: Pixels, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """(H, W, 3) with colours laid over it; (C, H, W) bool. A pixel wrong in any class is wrong."""
    shown = pixels.astype(np.float32)
    places = (
        (RIGHT, (predicted & truth).any(axis=0)),
        (MISSED, (truth & ~predicted).any(axis=0)),
        (INVENTED, (predicted & ~truth).any(axis=0)),
    )
    for colour, where in places:
        shown[where] = 0.4 * pixels[where] + 0.6 * np.array(colour, np.float32)
    return shown.astype(np.uint8)


def _small(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
