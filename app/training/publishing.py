"""Weights into the store: half precision, with a sample that the model itself answered in float32.

The sample's mask is computed by the plain net, eagerly, in float32 and from the very
half-precision numbers that are published, so it is the reference that every engine must reproduce
before it serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from app.architectures import base as architectures
from app.encodings import base as encodings
from app.errors import TrainingError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import crop_plane, fit
from app.imaging.scale import shown_size
from app.store.store import ModelStore
from app.training.nets import MEAN, STD
from app.types import ClassSpec, Mask, Pixels, Task


@dataclass(frozen=True)
class Recipe:
    """What a model is, beside its weights. `classes` in the order of the net's output channels."""

    architecture: str
    parameters: Mapping[str, Any]
    task: Task
    classes: tuple[ClassSpec, ...]
    threshold: float = 0.5
    precision: str = "auto"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    description: str = ""
    longest_side: int | None = None


def publish(
    store: ModelStore,
    name: str,
    *,
    weights: Path,
    recipe: Recipe,
    sample: Path,
    card: str,
    licence: Mapping[str, str],
    provenance: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    half: bool = True,
) -> int:
    """Publish canonical weights as the next version of `name`; its number.

    `sample` is a picture file that becomes part of the version. Raises EngineError for unknown
    architectures, TrainingError where the weights do not fit, and the store's errors.
    """
    state = load_file(weights)
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    architecture = architectures.get(recipe.architecture)
    parameters = architecture.complete({**recipe.parameters, "classes": len(recipe.classes)})
    net = architecture.build(**parameters)
    try:
        net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
    except RuntimeError as exc:
        raise TrainingError(f"`{weights}` does not fit `{recipe.architecture}`: {exc}") from exc
    data = sample.read_bytes()
    picture = decode(data, limits=DecodeLimits())
    height, width = picture.pixels.shape[:2]
    if shown_size(height, width, recipe.longest_side) != (height, width):
        raise TrainingError(
            f"the sample `{sample}` is {width} x {height}; at most {recipe.longest_side} pixels "
            "a side (`longest_side`), so that it proves the net and not the scaling"
        )
    mask = reference_mask(net, picture.pixels, recipe, stride=architecture.stride)
    encoding = encodings.get(
        "png" if encodings.get("png").expresses(recipe.task, classes=len(recipe.classes)) else "rle"
    )
    picture_name = f"sample{sample.suffix.lower()}"
    mask_name = f"sample.mask.{encoding.extension}"
    halo = architecture.halo(**parameters)
    draft = {
        "description": recipe.description,
        "architecture": recipe.architecture,
        "parameters": parameters,
        "task": recipe.task,
        "classes": [{"name": c.name, "colour": list(c.colour)} for c in recipe.classes],
        "input": {
            "mean": list(recipe.mean),
            "std": list(recipe.std),
            "stride": architecture.stride,
            "halo": {
                "top": halo.top,
                "left": halo.left,
                "bottom": halo.bottom,
                "right": halo.right,
            },
            "fit": "pad",
            "longest_side": recipe.longest_side,
        },
        "threshold": recipe.threshold,
        "precision": recipe.precision,
        "sample": {"picture": picture_name, "mask": mask_name},
        "licence": dict(licence),
        "provenance": dict(provenance),
        "scores": [dict(score) for score in scores],
    }
    files: dict[str, Path | bytes] = {
        "weights.safetensors": save({k: v.contiguous() for k, v in state.items()}),
        picture_name: data,
        mask_name: encoding.encode(mask),
        "README.md": card.encode(),
    }
    return store.publish(name, draft, files)


@torch.inference_mode()
def reference_mask(net: nn.Module, pixels: Pixels, recipe: Recipe, *, stride: int) -> Mask:
    """The mask that the plain net gives in float32 for (H, W, 3) uint8 pixels."""
    padded, margins = fit(pixels, stride)
    x = torch.from_numpy(np.ascontiguousarray(padded)).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor(recipe.mean).view(1, 3, 1, 1)) / torch.tensor(recipe.std).view(1, 3, 1, 1)
    logits = net.eval()(x)[0]
    height, width = pixels.shape[:2]

    def back(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return crop_plane(plane, margins, height=height, width=width)

    if recipe.task == "multiclass":
        p = logits.softmax(0)
        labels = back(logits.argmax(0).to(torch.uint8).numpy())
        bits = None
    else:
        p = logits.sigmoid()
        labels = None
        bits = np.packbits(back((p > recipe.threshold).to(torch.uint8).numpy()), axis=2)
    return Mask(
        height=height,
        width=width,
        task=recipe.task,
        classes=recipe.classes,
        bits=bits,
        labels=labels,
        probability=back((p * 255).round().to(torch.uint8).numpy()),
        threshold=None if recipe.task == "multiclass" else recipe.threshold,
    )


def publish_about(
    store: ModelStore, name: str, *, weights: Path, about: Path, card: Path, sample: Path
) -> int:
    """Publish weights with what a JSON file and a Markdown file say of them; the version.

    The JSON has `architecture`, `parameters`, `task`, `classes` (name and colour), `threshold`,
    `precision`, `description`, `longest_side`, and the manifest's `licence`, `provenance` and
    `scores`. Raises TrainingError where the files are not there or not understood.
    """
    try:
        said = json.loads(about.read_text())
        text = card.read_text()
        recipe = Recipe(
            architecture=said["architecture"],
            parameters=said.get("parameters", {}),
            task=said["task"],
            classes=tuple(ClassSpec(c["name"], tuple(c["colour"])) for c in said["classes"]),
            threshold=said.get("threshold", 0.5),
            precision=said.get("precision", "auto"),
            description=said.get("description", ""),
            longest_side=said.get("longest_side"),
        )
        licence, provenance = said["licence"], said["provenance"]
        scores = said.get("scores", [])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise TrainingError(f"cannot use `{about}` and `{card}`: {exc!r}") from exc
    return publish(
        store,
        name,
        weights=weights,
        recipe=recipe,
        sample=sample,
        card=text,
        licence=licence,
        provenance=provenance,
        scores=scores,
    )
