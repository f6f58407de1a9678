"""Models with seeded random weights, written as real files; one engine of each kind for all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from app.architectures.base import get
from app.architectures.initialise import initialise
from app.engine.base import Engine
from app.types import ClassSpec, ModelSpec, Pixels
from tests.fakes import model_spec

CLASSES = {"binary": 1, "multilabel": 3, "multiclass": 4}
Change = Callable[[dict[str, torch.Tensor]], None]
WriteSpec = Callable[..., ModelSpec]


@cache
def random_net(classes: int) -> nn.Module:
    """TernausNet-11 with He weights that float16 holds exactly; shared, never changed."""
    net = get("ternausnet11").build(classes=classes)
    initialise(net, generator=torch.Generator().manual_seed(0))
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    return net


def write_state(spec: ModelSpec, state: Mapping[str, torch.Tensor], path: Path) -> ModelSpec:
    """Save a state as the weights of `spec`, digest included."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(spec, weights=str(path), weights_sha256=digest, digest=digest)


@pytest.fixture(scope="session")
def write_spec(tmp_path_factory: pytest.TempPathFactory) -> WriteSpec:
    """`write_spec(task, change=None, **fields)`: a model on disk; `change` edits its tensors."""

    def write(task: str = "binary", change: Change | None = None, **fields: Any) -> ModelSpec:
        count = CLASSES[task]
        net = random_net(count)
        state = {name: value.half() for name, value in net.state_dict().items()}
        if change is not None:
            change(state)
        spec = model_spec(
            task=task,
            parameters={"classes": count},
            classes=tuple(ClassSpec(f"class {i}", (i, 0, 0)) for i in range(count)),
            **fields,
        )
        return write_state(spec, state, tmp_path_factory.mktemp("model") / "weights.safetensors")

    return write


@pytest.fixture(scope="session")
def specs(write_spec: WriteSpec) -> dict[str, ModelSpec]:
    """One model per task."""
    return {task: write_spec(task) for task in CLASSES}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of conversions for the session: a conversion takes seconds."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def tiles() -> Pixels:
    """Two tiles of 64 x 96, smooth like photographs rather than noise."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.float64)
    fine = np.kron(coarse, np.ones((1, 8, 8, 1))) + rng.normal(0, 6, (2, 64, 96, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def openvino_engines(specs: dict[str, ModelSpec], cache_dir: Path) -> Iterator[dict[str, Engine]]:
    """A float32 engine per task."""
    pytest.importorskip("openvino")
    from app.engine.openvino_cpu import OpenVinoEngine

    engines: dict[str, Engine] = {
        task: OpenVinoEngine(spec, precision="float32", cache_dir=cache_dir)
        for task, spec in specs.items()
    }
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="session")
def torch_engines(specs: dict[str, ModelSpec]) -> dict[str, Engine]:
    """A float32 engine per task."""
    from app.engine.torch_engine import TorchEngine

    return {task: TorchEngine(spec, precision="float32") for task, spec in specs.items()}


@pytest.fixture(params=["openvino", "torch"])
def engines(request: pytest.FixtureRequest) -> dict[str, Engine]:
    """Every CPU engine in turn: what the contract says holds for each."""
    found: dict[str, Engine] = request.getfixturevalue(f"{request.param}_engines")
    return found


def template_of(spec: ModelSpec, cache_dir: Path) -> Path:
    """Where the template of a model is kept."""
    from app.engine.templates import template_name

    return cache_dir / template_name(spec.architecture, spec.parameters, spec.task)


@pytest.fixture
def drawn_dir(
    specs: dict[str, ModelSpec],
    openvino_engines: dict[str, Engine],
    cache_dir: Path,
    tmp_path: Path,
) -> Path:
    """A cache that holds the templates of `specs`, and no conversion."""
    for spec in specs.values():
        folder = template_of(spec, cache_dir)
        shutil.copytree(folder, tmp_path / "drawn" / folder.name, dirs_exist_ok=True)
    return tmp_path / "drawn"
