"""Every net, drawn without weights and filled: the numbers of torch."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

from app.architectures.base import Architecture, registry
from app.architectures.initialise import initialise
from app.engine.converter import draw
from app.engine.core import Core
from app.engine.nets import load_net
from app.engine.openvino_library import openvino
from app.engine.templates import fill
from app.types import ClassSpec, ModelSpec, Task
from tests.engine.conftest import write_state
from tests.fakes import model_spec

# Each net as it is by default, and every way to enlarge in one of them, with a task in turn.
TASKS: tuple[Task, ...] = ("binary", "multilabel", "multiclass")
CASES = [
    pytest.param(architecture, parameters, task, id="-".join((architecture.name, *words, task)))
    for (architecture, parameters, words), task in zip(
        (
            (a, p, map(str, p.values()))
            for a in registry().values()
            for p in (a.variants() if a.name == "ternausnet11" else a.variants()[:1])
        ),
        cycle(TASKS),
    )
]
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}


def written(
    architecture: Architecture, parameters: dict[str, Any], task: Task, folder: Path
) -> ModelSpec:
    """A model with random weights on disk."""
    count = 1 if task == "binary" else 3
    net = architecture.build(**parameters, classes=count)
    initialise(net, generator=torch.Generator().manual_seed(1))
    spec = model_spec(
        task=task,
        architecture=architecture.name,
        parameters={**parameters, "classes": count},
        classes=tuple(ClassSpec(f"class {i}", (i, 0, 0)) for i in range(count)),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        stride=architecture.stride,
    )
    return write_state(spec, net.state_dict(), folder / "weights.safetensors")


@pytest.mark.parametrize(("architecture", "parameters", "task"), CASES)
def test_a_filled_template_computes_what_torch_computes(
    architecture: Architecture, parameters: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    spec = written(architecture, parameters, task, tmp_path)
    draw(architecture.name, parameters, task, tmp_path)
    fill(tmp_path, spec, tmp_path / "model.xml")
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", PRECISE)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2, architecture.stride, 2 * architecture.stride, 3), np.uint8)
    limits = np.array([0.5, 0.4], np.float32)
    mask, p, total = compiled([pixels, limits]).values()
    core = Core(load_net(spec), task=task, mean=spec.mean, std=spec.std, packed=False)
    with torch.inference_mode():
        theirs = core(torch.from_numpy(pixels), torch.from_numpy(limits))
    assert mask.shape == tuple(theirs[0].shape)
    assert (mask != theirs[0].numpy()).mean() < 1e-3
    assert np.abs(p.astype(int) - theirs[1].numpy().astype(int)).max() <= 1
    np.testing.assert_allclose(total, theirs[2].numpy(), rtol=1e-3, atol=np.abs(total).max() * 1e-3)
    assert p.std() > 1
