"""Pictures and mask files: `images/` and `masks/`, or pairs in one flat folder.

A mask has the stem of its picture (`a.jpg`, `a.png`), or that with `_mask` or `.mask`. One
class: every pixel that is not 0, or that has the class's value. Several: the class's position or
value in a grey or palette file, or its colour in a coloured one. Folders below `masks/`, one for
each class, hold masks of classes that may overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TrainingError
from app.training.classes import Label
from app.training.examples import PICTURES, Collection, Example, Reading, layered
from app.training.losses import IGNORE
from app.training.scenes import Labels
from app.types import Task

# Names that public data sets use; the first that is there counts.
IMAGES = ("images", "imgs", "pictures", "image", "train", "img")
MASKS = ("masks", "labels", "annotations", "mask", "train_masks", "label", "trimaps")
MARKS = ("", "_mask", ".mask", "-mask", "_seg")

_LOSSY = (".jpg", ".jpeg")
_ODD_SHOWN = 5


def inner_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of masks, None where one is missing."""
    images = [folder / name for name in IMAGES if (folder / name).is_dir()]
    masks = [folder / name for name in MASKS if (folder / name).is_dir()]
    return (images[0], masks[0]) if images and masks else None


def open_folders(folder: Path, inner: tuple[Path, Path], reading: Reading) -> Collection:
    """Pictures of one folder with masks of the other, or of one folder for each class in it."""
    images, masks = inner
    pictures = _pictures(images)
    if not pictures:
        raise TrainingError(f"no pictures in `{images}`")
    layers = sorted(p for p in masks.iterdir() if p.is_dir() and any(_pictures(p)))
    if layers and not any(_pictures(masks)):
        return _open_layers(folder, pictures, layers, reading)
    return _paired(folder, pictures, _pictures(masks), reading)


def open_flat(folder: Path, reading: Reading) -> Collection:
    """`a.jpg` beside `a_mask.png` or `a.png`."""
    every = _pictures(folder)
    taken = {path.stem for path in every if path.suffix.lower() in (".jpg", ".jpeg")}
    masks = [
        path
        for path in every
        if any(path.stem.endswith(mark) for mark in MARKS[1:])
        or (path.suffix.lower() in (".png", ".gif", ".bmp") and path.stem in taken)
    ]
    if not masks:
        raise TrainingError(
            f"`{folder}` holds no training data that is known: folders `images/` and `masks/`; "
            "pairs such as `a.jpg` and `a_mask.png`; one `.csv` with `id,rle`; one COCO `.json`"
        )
    return _paired(folder, [path for path in every if path not in masks], masks, reading)


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.glob("*") if p.suffix.lower() in PICTURES and not p.name.startswith(".")
    )


def _paired(folder: Path, pictures: list[Path], masks: list[Path], reading: Reading) -> Collection:
    task, classes = reading.labels(("foreground",), usual="multiclass", written=True)
    if task == "multilabel":
        raise TrainingError(
            f"one mask file cannot hold classes that overlap: `{folder}` needs a folder for each "
            "class below `masks/`, or COCO"
        )
    by_stem = {path.stem: path for path in masks}
    problems: list[str] = []
    examples = []
    used: set[Path] = set()
    for picture in pictures:
        found = [by_stem[picture.stem + mark] for mark in MARKS if picture.stem + mark in by_stem]
        if not found:
            problems.append(f"`{picture}` has no mask")
            continue
        used.add(found[0])
        paint = _painter(found[0], task, classes, reading.ignore)
        examples.append(Example(picture.stem, picture, paint))
    problems += [f"`{path}` is the mask of no picture" for path in masks if path not in used]
    return Collection(str(folder), task, classes, *_unique(examples, problems))


def _open_layers(
    folder: Path, pictures: list[Path], layers: list[Path], reading: Reading
) -> Collection:
    task, classes = reading.labels(
        [path.name for path in layers], usual="multilabel", written=False
    )
    named = {path.name: path for path in layers}
    wanted = classes[1:] if task == "multiclass" else classes
    missing = [label.name for label in wanted if label.name not in named]
    if missing:
        raise TrainingError(f"`{folder}` has no masks for: {', '.join(missing)}")
    examples, problems = [], []
    for picture in pictures:
        files = [
            next((p for p in _pictures(named[label.name]) if p.stem == picture.stem), None)
            for label in wanted
        ]
        if not any(files):
            problems.append(f"`{picture}` has no mask of any class")
            continue
        examples.append(Example(picture.stem, picture, _layer_painter(files, task)))
    return Collection(str(folder), task, classes, *_unique(examples, problems))


def _unique(
    examples: list[Example], problems: list[str]
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Of two pictures of one stem only the first stays: a name must say which one is meant."""
    kept: dict[str, Example] = {}
    for example in examples:
        if example.name in kept:
            problems.append(
                f"`{example.picture.name}` and `{kept[example.name].picture.name}` have one stem"
            )
        else:
            kept[example.name] = example
    return tuple(kept.values()), tuple(problems)


def _layer_painter(files: list[Path | None], task: Task) -> Callable[[int, int], Labels]:
    def paint(height: int, width: int) -> Labels:
        planes = np.zeros((len(files), height, width), np.bool_)
        for plane, file in zip(planes, files, strict=True):
            if file is not None:
                values = _grey(file)
                if values.shape != plane.shape:
                    raise TrainingError(
                        f"`{file}` is {values.shape[1]} x {values.shape[0]}, its picture "
                        f"{width} x {height}"
                    )
                plane[:] = values > 0
        return layered(planes, task)

    return paint


def _painter(
    file: Path, task: Task, classes: tuple[Label, ...], ignore: int | None
) -> Callable[[int, int], Labels]:
    def paint(height: int, width: int) -> Labels:
        if task == "binary":
            return _binary(file, classes[0], ignore)[None]
        return _indexed(file, classes, ignore)[None]

    return paint


def _binary(file: Path, label: Label, ignore: int | None) -> NDArray[np.uint8]:
    """(H, W) of 0, 1 and IGNORE."""
    plain = label.value is None and ignore is None
    values = _grey(file) if plain else _values(file)
    # What was saved with loss is nowhere quite black.
    floor = 127 if file.suffix.lower() in _LOSSY else 0
    truth = values > floor if label.value is None else values == label.value
    labels = truth.astype(np.uint8)
    if ignore is not None:
        labels[values == ignore] = IGNORE
    return labels


def _indexed(file: Path, classes: tuple[Label, ...], ignore: int | None) -> NDArray[np.uint8]:
    """(H, W) class indices and IGNORE. Raises TrainingError that lists values of no class."""
    if any(label.coloured for label in classes) and all(label.value is None for label in classes):
        return _by_colour(file, classes)
    values = _values(file)
    table = np.full(256, IGNORE, np.uint8)
    known = {255 if ignore is None else ignore}
    for index, label in enumerate(classes):
        value = index if label.value is None else label.value
        table[value] = index
        known.add(value)
    odd = sorted(set(np.unique(values).tolist()) - known)
    if odd:
        shown = ", ".join(str(value) for value in odd[:_ODD_SHOWN])
        raise TrainingError(
            f"`{file}` holds {shown}{' and more' if len(odd) > _ODD_SHOWN else ''}, "
            f"which is no class; {len(classes)} classes are known"
        )
    return table[values]


def _by_colour(file: Path, classes: tuple[Label, ...]) -> NDArray[np.uint8]:
    with _opened(file) as image:
        rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
    packed = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    labels = np.full(packed.shape, IGNORE, np.uint8)
    known = np.zeros(packed.shape, np.bool_)
    for index, label in enumerate(classes):
        r, g, b = label.colour
        here = packed == (r << 16 | g << 8 | b)
        labels[here], known = index, known | here
    if not known.all():
        odd = np.unique(packed[~known])
        shown = ", ".join(f"#{int(value):06x}" for value in odd[:_ODD_SHOWN])
        raise TrainingError(
            f"`{file}` holds {len(odd)} colours of no class: {shown}\n"
            "hint: masks are saved without loss (PNG), or name every colour"
        )
    return labels


def _grey(file: Path) -> NDArray[np.uint8]:
    """(H, W): 0 where a viewer shows black."""
    with _opened(file) as image:
        return np.asarray(image.convert("L"))


def _values(file: Path) -> NDArray[np.uint8]:
    """(H, W): the numbers in the file, of a palette its positions. Raises TrainingError."""
    if file.suffix.lower() in _LOSSY:
        raise TrainingError(f"`{file}` was saved with loss, so its values are not classes; use PNG")
    with _opened(file) as image:
        array = np.asarray(image)
    if array.ndim == 3 and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2:
        raise TrainingError(f"`{file}` is in colour; give every class its colour")
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.min() < 0 or array.max() > 255:
        raise TrainingError(f"`{file}` holds values up to {array.max()}; a class is 0 to 255")
    return array.astype(np.uint8)


def _opened(file: Path) -> Image.Image:
    """A mask file, decoded. By Pillow itself: the numbers of a mask must not become colours."""
    try:
        image: Image.Image = Image.open(file)
        image.load()
    except (OSError, ValueError, SyntaxError) as exc:
        raise TrainingError(f"`{file}` cannot be read: {exc}") from exc
    return image
