"""An example: a picture file and what its labels are made of, read when needed.

Three layouts of data give examples: folders (`app.training.folders`), a CSV of run lengths
(`app.training.tables`) and COCO JSON (`app.training.coco`). Pictures are decoded by the very code
that serves them. A layout lists what is bad about its files and never stops at the first fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from app.errors import PictureError, TernausError, TrainingError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.training.classes import Label, labels_of
from app.training.scenes import Labels, Scene
from app.types import Pixels, Task

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
# A training set is its owner's own: larger pictures than a server takes are no attack.
LIMITS = DecodeLimits(max_pixels=1_000_000_000, max_decoded_bytes=8 * 2**30)

Order = Literal["F", "C"]
Paint = Callable[[int, int], Labels]


@dataclass(frozen=True, slots=True)
class Example:
    """`paint(height, width)` gives labels (P, H, W) uint8; raises TrainingError for a bad mask."""

    name: str
    picture: Path
    paint: Paint

    def pixels(self) -> Pixels:
        """(H, W, 3) uint8 RGB. Raises TrainingError where the file cannot be read."""
        try:
            return decode(self.picture.read_bytes(), limits=LIMITS).pixels
        except OSError as exc:
            raise TrainingError(f"`{self.picture}` cannot be read: {exc.strerror}") from exc
        except PictureError as exc:
            raise TrainingError(f"`{self.picture}`: {exc}") from exc

    def read(self) -> Scene:
        """Both, decoded and checked against each other. Raises TrainingError."""
        pixels = self.pixels()
        height, width = pixels.shape[:2]
        try:
            labels = self.paint(height, width)
        except TrainingError:
            raise
        except TernausError as exc:
            raise TrainingError(f"`{self.name}`: {exc}") from exc
        if labels.shape[1:] != (height, width):
            raise TrainingError(
                f"`{self.picture.name}` is {width} x {height}, "
                f"its mask {labels.shape[2]} x {labels.shape[1]}"
            )
        return Scene(self.name, pixels, labels)


@dataclass(frozen=True, slots=True)
class Reading:
    """How data is to be understood. `classes` as people write them; empty: found in the files.

    `task` None: `binary` for one class, else what the layout can hold. `ignore`: the value of
    unlabelled pixels in mask files. `order`: of run lengths, F down columns or C along rows.
    """

    classes: tuple[str, ...] = ()
    task: Task | None = None
    ignore: int | None = None
    order: Order = "F"

    def labels(
        self, found: Sequence[str], *, usual: Task, written: bool
    ) -> tuple[Task, tuple[Label, ...]]:
        """The task, and its classes with the background first where they exclude each other.

        `found`: what the files call their classes. `usual`: the task of several classes in this
        layout. `written`: the background has a value of its own in the files, so that whoever names
        classes names it too.
        """
        texts = list(self.classes or found)
        if not texts:
            raise TrainingError("the files name no class\nhint: name them with `--class`")
        task = self.task or ("binary" if len(texts) == 1 else usual)
        if task == "multiclass" and (len(texts) == 1 or not written):
            named = texts[0].startswith("background") and len(texts) > 1
            texts = texts if named else ["background", *texts]
        if task == "binary" and len(texts) != 1:
            raise TrainingError(f"a binary model has 1 class, not {len(texts)}: {', '.join(texts)}")
        return task, labels_of(texts, task)


@dataclass(frozen=True, slots=True)
class Collection:
    """What lies in one place: examples in the order of their names, and what is wrong with it."""

    where: str
    task: Task
    classes: tuple[Label, ...]
    examples: tuple[Example, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def planes(self) -> int:
        """Planes of the labels."""
        return len(self.classes) if self.task == "multilabel" else 1


def open_data(where: str | Path, reading: Reading) -> Collection:
    """The examples of a folder, a CSV or a COCO JSON. Raises TrainingError for what is neither."""
    from app.training import coco, folders, tables

    path = Path(where)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return tables.open_table(path, reading)
        if path.suffix.lower() == ".json":
            return coco.open_coco(path, reading)
        raise TrainingError(f"`{path}` is neither a folder nor a `.csv` or `.json` file")
    if not path.is_dir():
        raise TrainingError(f"`{path}` does not exist")
    inner = folders.inner_folders(path)
    if inner is not None:
        return folders.open_folders(path, inner, reading)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".json"))
    if len(files) == 1:
        return open_data(files[0], reading)
    if len(files) > 1:
        names = ", ".join(f"`{p.name}`" for p in files)
        raise TrainingError(f"`{path}` holds several lists of masks: {names}; name one of them")
    return folders.open_flat(path, reading)


def picture_index(folders: Sequence[Path]) -> dict[str, Path]:
    """Pictures by name and by stem, from the first folder that has them; not in deeper folders."""
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in PICTURES and not path.name.startswith("."):
                    found.setdefault(path.name, path)
                    found.setdefault(path.stem, path)
    return found


def layered(planes: np.ndarray, task: Task) -> Labels:
    """(C, H, W) bool planes of foreground classes -> labels; later classes lie over earlier ones.

    `multiclass` counts the background as class 0.
    """
    if task != "multiclass":
        return planes.astype(np.uint8)
    labels = np.zeros((1, *planes.shape[1:]), np.uint8)
    for index, plane in enumerate(planes, start=1):
        labels[0][plane] = index
    return labels
