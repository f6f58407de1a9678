"""What is published proves itself: its sample mask is what every engine gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from app.architectures.base import get
from app.architectures.initialise import initialise
from app.encodings import base as encodings
from app.engine.agreement import EXACT
from app.engine.choose import open_engine
from app.engine.options import EngineOptions
from app.engine.self_test import self_test
from app.errors import CheckpointRefused, CheckpointUnknown, ModelDamaged, TrainingError
from app.imaging.bounds import DecodeLimits
from app.imaging.decode import decode
from app.imaging.fit import fit
from app.store.store import ModelStore
from app.training.classes import classes_of, colour_of, labels_of, task_of
from app.training.importing import import_checkpoint
from app.training.publishing import Recipe, publish, publish_about
from app.types import ModelSpec, Task
from tests.training.pictures import blobs

BACKENDS = ("openvino", "torch")
CHANNELS: Mapping[Task, int] = {"binary": 1, "multilabel": 2, "multiclass": 3}
LICENCE = {"identifier": "CC0-1.0"}


def provenance() -> dict[str, Any]:
    return {
        "data": [],
        "encoder": "he",
        "command": "test",
        "date": date(2026, 1, 2).isoformat(),
        "frameworks": {"torch": torch.__version__},
    }


def random_net(classes: int) -> nn.Module:
    net = get("unet-surgical").build(classes=classes)
    initialise(net, generator=torch.Generator().manual_seed(1))
    # Logits around 0, so that every class wins somewhere.
    pixels = torch.from_numpy(blobs(64, 64, seed=3)[0]).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = net((pixels / 255 - 0.45) / 0.226)
        net.get_parameter("conv_final.bias").sub_(logits.mean((0, 2, 3)))
    return net


def sample_file(folder: Path) -> Path:
    """51 x 70: no multiple of the stride, so that the way back from padding is proven too."""
    path = folder / "roof.png"
    Image.fromarray(blobs(51, 70, seed=3)[0]).save(path)
    return path


def published(folder: Path, task: Task) -> tuple[ModelStore, ModelSpec]:
    weights = folder / "w.safetensors"
    save_file(random_net(CHANNELS[task]).state_dict(), weights)
    store = ModelStore(folder / "store")
    recipe = Recipe("unet-surgical", {}, task, classes_of(None, CHANNELS[task], task))
    version = publish(
        store,
        "blobs",
        weights=weights,
        recipe=recipe,
        sample=sample_file(folder),
        card="# blobs\n",
        licence=LICENCE,
        provenance=provenance(),
        scores=[],
    )
    assert version == 1
    return store, store.resolve("blobs")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", CHANNELS)
def test_sample_mask_is_what_the_engine_gives(tmp_path: Path, task: Task, backend: Any) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    store, spec = published(tmp_path, task)
    assert store.verify("blobs", finite=True).sound
    data = Path(spec.sample_mask).read_bytes()
    pixels = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits()).pixels
    kind = "png" if spec.sample_mask.endswith(".png") else "rle"
    mask = encodings.get(kind).decode(data, (51, 70))
    padded, margins = fit(pixels, spec.stride)
    assert 0.001 < (mask > 0).mean() < 0.999
    engine = open_engine(
        spec, EngineOptions(device="cpu", backend=backend, precision="float32", batch_sizes=(1,))
    )
    try:
        found = self_test(
            engine, np.ascontiguousarray(padded), mask, top=margins.top, left=margins.left
        )
    finally:
        engine.close()
    assert EXACT.accepts(found)


def test_published_weights_are_half_precision_and_described(tmp_path: Path) -> None:
    store, _ = published(tmp_path, "multiclass")
    manifest = store.manifest("blobs@1")
    assert manifest.tensors.shapes
    assert all(shape.startswith("F16") for shape in manifest.tensors.shapes.values())
    assert [c.name for c in manifest.classes] == ["background", "class 1", "class 2"]
    assert manifest.parameters["classes"] == 3
    assert manifest.input.stride == 32


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({"other": torch.zeros(3)}, weights)
    recipe = Recipe("unet-surgical", {}, "binary", classes_of(None, 1, "binary"))
    with pytest.raises(TrainingError, match="does not fit `unet-surgical`"):
        publish(
            ModelStore(tmp_path / "store"),
            "blobs",
            weights=weights,
            recipe=recipe,
            sample=sample_file(tmp_path),
            card="",
            licence=LICENCE,
            provenance=provenance(),
            scores=[],
        )


def test_publish_from_files_and_their_mistakes(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(random_net(1).state_dict(), weights)
    about, card = tmp_path / "about.json", tmp_path / "card.md"
    card.write_text("# roofs\n")
    said = {
        "architecture": "unet-surgical",
        "task": "binary",
        "classes": [{"name": "roof", "colour": [255, 0, 0]}],
        "threshold": 0.4,
        "licence": LICENCE,
        "provenance": provenance(),
    }
    about.write_text(json.dumps(said))
    store = ModelStore(tmp_path / "store")
    sample = sample_file(tmp_path)
    files = {"weights": weights, "about": about, "card": card, "sample": sample}
    assert publish_about(store, "roofs", **files) == 1
    assert store.manifest("roofs").threshold == 0.4
    about.write_text(json.dumps({k: v for k, v in said.items() if k != "task"}))
    with pytest.raises(TrainingError, match="task"):
        publish_about(store, "roofs", **files)


# Importing.


def imported(folder: Path, state: Any, **changes: Any) -> tuple[ModelStore, str]:
    checkpoint = folder / "model.pt"
    torch.save(state, checkpoint)
    store = ModelStore(folder / "store")
    values: dict[str, Any] = {
        "name": "carvana",
        "sample": sample_file(folder),
        "classes": "car:#ff8800",
        "task": None,
        "interpolation": None,
        "align_corners": False,
        "threshold": 0.3,
        "longest_side": None,
        "licence": "MIT",
        "command": "test",
    }
    return store, import_checkpoint(store, checkpoint, **{**values, **changes})


def test_sample_larger_than_the_net_is_shown_is_refused(tmp_path: Path) -> None:
    net = get("ternausnet11").build(classes=1, upsampling="transposed-3x3")
    with pytest.raises(TrainingError, match="at most 32 pixels"):
        imported(tmp_path, net.state_dict(), longest_side=32)


def test_published_checkpoint_becomes_a_model_that_gives_its_mask(tmp_path: Path) -> None:
    net = get("ternausnet11").build(classes=1, upsampling="transposed-3x3")
    initialise(net, generator=torch.Generator().manual_seed(2))
    # As robot-surgery's training wrote it: wrapped, and from DataParallel.
    state = {"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}
    store, label = imported(tmp_path, state)
    assert label == "carvana@1"
    manifest = store.manifest(label)
    assert (manifest.architecture, manifest.task) == ("ternausnet11", "binary")
    assert manifest.parameters["upsampling"] == "transposed-3x3"
    assert (manifest.classes[0].name, manifest.classes[0].colour) == ("car", (255, 136, 0))
    assert manifest.threshold == 0.3
    spec = store.resolve(label)
    engine = open_engine(
        spec, EngineOptions(device="cpu", backend="torch", precision="float32", batch_sizes=(1,))
    )
    pixels = decode(Path(spec.sample_picture).read_bytes(), limits=DecodeLimits()).pixels
    padded, margins = fit(pixels, 32)
    mask = encodings.get("png").decode(Path(spec.sample_mask).read_bytes(), (51, 70))
    self_test(engine, np.ascontiguousarray(padded), mask, top=margins.top, left=margins.left)
    engine.close()


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnknown, match="known families"):
        imported(tmp_path, {"a.weight": torch.zeros(3, 3)})
    state = random_net(1).state_dict()
    state["conv_final.bias"] = torch.tensor([float("nan")])
    with pytest.raises((CheckpointRefused, ModelDamaged), match="NaN"):
        imported(tmp_path, state)
    assert not ModelStore(tmp_path / "store").names()


def test_classes_and_tasks_as_people_write_them() -> None:
    assert task_of(None, 1) == "binary"
    assert task_of(None, 4) == "multiclass"
    assert task_of("multilabel", 4) == "multilabel"
    with pytest.raises(CheckpointRefused, match="does not have 1"):
        task_of("multiclass", 1)
    with pytest.raises(TrainingError, match="known: binary"):
        task_of("panoptic", 2)
    with pytest.raises(TrainingError, match="2 class names for 3"):
        classes_of("a,b", 3, "multiclass")
    with pytest.raises(TrainingError, match="named twice"):
        labels_of(["a", "a"], "multilabel")
    with pytest.raises(TrainingError, match="roof=1:#ff0000"):
        labels_of(["a:#12"], "binary")
    with pytest.raises(TrainingError, match="0 to 255"):
        labels_of(["a=256"], "binary")
    label = labels_of(["roof=3:#0102ff"], "binary")
    assert (label[0].name, label[0].value, label[0].colour) == ("roof", 3, (1, 2, 255))
    colours = {colour_of(i, "multilabel") for i in range(20)}
    assert len(colours) == 20
