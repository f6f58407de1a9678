"""COCO's JSON of instances: polygons, counts, or compressed counts, for each picture and category.

Categories may overlap, so several of them are `multilabel` unless `--task multiclass` is asked for;
there smaller objects lie over larger ones. Crowds count as their category.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.encodings import _coco, _runs
from app.errors import MalformedRequest, TrainingError
from app.training.examples import Collection, Example, Reading, picture_index
from app.training.folders import IMAGES
from app.training.polygons import fill
from app.training.scenes import Labels
from app.types import Task


def open_coco(file: Path, reading: Reading) -> Collection:
    """The pictures of a COCO file. Raises TrainingError where the file itself is not understood."""
    try:
        said = json.loads(file.read_bytes())
        images = {int(entry["id"]): str(entry["file_name"]) for entry in said["images"]}
        categories = {int(entry["id"]): str(entry["name"]) for entry in said["categories"]}
        marks = [
            (int(one["image_id"]), int(one["category_id"]), one) for one in said["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise TrainingError(f"`{file}` is not COCO JSON of instances: {exc!r}") from exc
    task, classes = reading.labels(
        [categories[key] for key in sorted(categories)], usual="multilabel", written=False
    )
    wanted = [label.name for label in (classes[1:] if task == "multiclass" else classes)]
    absent = [name for name in wanted if name not in categories.values()]
    if absent:
        raise TrainingError(
            f"`{file}` has no category {', '.join(f'`{name}`' for name in absent)}; "
            f"known: {', '.join(categories.values())}"
        )
    problems = []
    owned: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for image, category, one in marks:
        if image not in images or category not in categories:
            problems.append(
                f"`{file.name}`: annotation {one.get('id')} is of no picture or category"
            )
        elif categories[category] in wanted:
            owned[image].append((wanted.index(categories[category]), one))
    parent = file.parent
    index = picture_index(
        [parent / name for name in IMAGES] + [parent] + [parent.parent / name for name in IMAGES]
    )
    examples: dict[str, Example] = {}
    for key, name in sorted(images.items(), key=lambda item: item[1]):
        picture = index.get(Path(name).name)
        if picture is None and (parent / name).is_file():
            picture = parent / name
        if picture is None:
            problems.append(f"`{file.name}` names `{name}`, and there is no such picture")
        elif picture.stem in examples:
            problems.append(f"`{file.name}` names two pictures `{picture.stem}`")
        else:
            examples[picture.stem] = Example(
                picture.stem, picture, _painter(name, owned[key], len(wanted), task)
            )
    if not examples:
        raise TrainingError(f"none of the pictures of `{file}` is beside it or in `images/`")
    return Collection(str(file), task, classes, tuple(examples.values()), tuple(problems))


def _painter(
    name: str, marks: list[tuple[int, dict[str, Any]]], planes: int, task: Task
) -> Callable[[int, int], Labels]:
    def paint(height: int, width: int) -> Labels:
        try:
            found = [(index, segment(one["segmentation"], height, width)) for index, one in marks]
        except (MalformedRequest, ValueError, KeyError, TypeError) as exc:
            raise TrainingError(f"`{name}`: an annotation cannot be read: {exc}") from exc
        if task != "multiclass":
            labels = np.zeros((planes, height, width), np.uint8)
            for index, plane in found:
                labels[index] |= plane
            return labels
        labels = np.zeros((1, height, width), np.uint8)
        for index, plane in sorted(found, key=lambda entry: -int(entry[1].sum())):
            labels[0][plane] = index + 1
        return labels

    return paint


def segment(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool of a list of rings or of run lengths. Raises ValueError and MalformedRequest."""
    if isinstance(segmentation, list):
        found = np.zeros((height, width), np.bool_)
        for ring in segmentation:
            found |= fill(ring, height, width)
        return found
    size = [int(side) for side in segmentation["size"]]
    if size != [height, width]:
        raise ValueError(f"run lengths of {size[1]} x {size[0]} for {width} x {height}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return _runs.paint(
            _coco.to_counts(counts, pixels=height * width), height=height, width=width
        )
    numbers = np.asarray(counts, np.int64)
    if numbers.ndim != 1 or numbers.min(initial=0) < 0 or numbers.sum() != height * width:
        raise ValueError(f"counts are negative or do not sum to {height * width} pixels")
    return _runs.paint(numbers, height=height, width=width)
