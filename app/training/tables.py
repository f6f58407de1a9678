"""A CSV of run lengths as Kaggle's competitions have it: `id,rle`, or `id,class,rle`.

Columns are told by their names (`ImageId`, `EncodedPixels` and so on), else by their position.
Several rows of one id are instances of one mask. Rows of one id are not needed: a picture that is
named with empty runs is one without the class. Pictures lie beside the file or in `images/`.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.encodings.kaggle import decode_runs
from app.errors import TernausError, TrainingError
from app.training.examples import Collection, Example, Reading, layered, picture_index
from app.training.folders import IMAGES
from app.training.scenes import Labels
from app.types import Task

_IDS = ("id", "img", "image", "imageid", "image_id", "img_id", "filename", "file_name", "file")
_RUNS = ("rle", "rle_mask", "encodedpixels", "encoded_pixels", "segmentation", "mask", "pixels")
_CLASSES = ("class", "classid", "class_id", "label", "category")
_NOTHING = ("", "-1", "-", "nan", "0 0", "1 0")


def open_table(file: Path, reading: Reading) -> Collection:
    """The pictures that a CSV names. Raises TrainingError where the file is not understood."""
    rows = _rows(file)
    names = sorted({name for _, name, _ in rows if name})
    task, classes = reading.labels(names or ("foreground",), usual="multilabel", written=False)
    wanted = [label.name for label in (classes[1:] if task == "multiclass" else classes)]
    unknown = sorted(set(names) - set(wanted)) if len(names) > 1 else []
    problems = [f"`{file.name}` names class `{name}`, which was not asked for" for name in unknown]
    index = picture_index([file.parent / name for name in IMAGES] + [file.parent])
    masks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for identifier, name, runs in rows:
        masks[identifier]
        if runs.lower() not in _NOTHING and name not in unknown:
            masks[identifier].append((wanted.index(name) if len(wanted) > 1 else 0, runs))
    examples = []
    for identifier in sorted(masks):
        picture = index.get(identifier) or index.get(Path(identifier).stem)
        if picture is None:
            problems.append(f"`{file.name}` names `{identifier}`, and there is no such picture")
            continue
        paint = _painter(identifier, masks[identifier], len(wanted), task, reading)
        examples.append(Example(picture.stem, picture, paint))
    if not examples:
        raise TrainingError(
            f"`{file}` names none of the pictures in `{file.parent}` or `images/` there; "
            f"its first id is `{rows[0][0]}`"
        )
    return Collection(str(file), task, classes, tuple(examples), tuple(problems))


def _painter(
    identifier: str, masks: list[tuple[int, str]], planes: int, task: Task, reading: Reading
) -> Callable[[int, int], Labels]:
    def paint(height: int, width: int) -> Labels:
        found = np.zeros((planes, height, width), np.bool_)
        for index, runs in masks:
            try:
                found[index] |= decode_runs(runs, (height, width), reading.order)
            except TernausError as exc:
                raise TrainingError(f"`{identifier}`: {exc}") from exc
        return layered(found, task)

    return paint


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(id, class or empty, runs) of every row. Raises TrainingError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise TrainingError(f"`{file}` cannot be read: {exc}") from exc
    # The module's limit of 131,072 characters a field is global; splitting by hand has none, and
    # neither runs nor ids contain commas.
    lines = [line for line in text.splitlines() if line.strip()]
    header = next(csv.reader(lines[:1]), [])
    names = [name.strip().lower() for name in header]
    if not 2 <= len(names) <= 8:
        raise TrainingError(f"`{file}` does not begin with a header such as `id,rle`")
    runs = _column(names, _RUNS, len(names) - 1)
    identifier = _column(names, _IDS, 0)
    kind = next((names.index(name) for name in _CLASSES if name in names), None)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = [part.strip().strip('"') for part in line.split(",")]
        if len(fields) != len(names):
            raise TrainingError(
                f"line {number} of `{file}` has {len(fields)} fields of {len(names)}"
            )
        rows.append((fields[identifier], "" if kind is None else fields[kind], fields[runs]))
    if not rows:
        raise TrainingError(f"`{file}` has no rows")
    return rows


def _column(names: list[str], known: tuple[str, ...], otherwise: int) -> int:
    return next((names.index(name) for name in known if name in names), otherwise)
