"""What is exported gives the engine's mask, for every size and batch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.architectures.base import registry
from app.engine.base import Engine
from app.engine.torch_engine import TorchEngine
from app.errors import TrainingError
from app.training.export import Probabilities, export, format_of, traced
from app.types import Inference, Pixels, Task
from tests.fakes import model_spec
from tests.training.pictures import blobs
from tests.training.test_publishing import CHANNELS, published

# The exporters warn of their own parts.
pytestmark = pytest.mark.filterwarnings("ignore")
ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    task: Task = getattr(request, "param", "binary")
    _, spec = published(tmp_path, task)
    made = TorchEngine(spec, precision="float32", threads=1)
    yield made
    made.close()


@pytest.mark.parametrize("engine", CHANNELS, indirect=True)
def test_torch_program_gives_the_mask_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    done = export(engine, tmp_path / "out" / "model.pt2", format="torch")
    assert done.agreement.changed == 0.0
    assert done.largest <= 0.5 / 255 + 1e-4
    program = torch.export.load(done.path).module()
    pixels = np.stack([blobs(96, 160, seed=s)[0] for s in (1, 2, 3)])
    found = program(torch.from_numpy(pixels)).numpy()
    expected = engine.infer(pixels, np.full(3, 0.5, np.float32), probability=True).probability
    assert expected is not None
    assert np.abs(found * 255 - expected).max() <= 0.51
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("name", registry())
def test_every_architecture_is_traced_for_every_size(name: str) -> None:
    architecture = registry()[name]
    with torch.device("meta"):
        net = architecture.build()
    spec = model_spec(architecture=name, stride=architecture.stride)
    found = traced(Probabilities(net, spec).to("meta").eval(), spec)
    (pixels,) = [node for node in found.graph.nodes if node.name == "pixels"]
    shape = pixels.meta["val"].shape
    assert [isinstance(side, torch.SymInt) for side in shape] == [True, True, True, False]


@pytest.mark.skipif(not ONNX, reason="the extra `export` is not installed")
@pytest.mark.parametrize("engine", ["binary", "multiclass"], indirect=True)
def test_onnx_gives_the_mask_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    done = export(engine, tmp_path / "model.onnx", format="onnx")
    assert done.checked_with.startswith("ONNX Runtime")
    assert done.agreement.changed == 0.0
    assert done.largest <= 0.5 / 255 + 1e-4


@pytest.mark.skipif(ONNX, reason="the extra `export` is installed")
def test_onnx_without_its_packages_says_what_to_install(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"hint: `pip install 'ternausnet-serve\[export\]'`"):
        export(engine, tmp_path / "model.onnx", format="onnx")
    assert not (tmp_path / "model.onnx").exists()


class Liar:
    """An engine that turns its mask over."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec = engine.spec
        self.batch_sizes = engine.batch_sizes

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        found = self._engine.infer(pixels, thresholds, probability=probability)
        assert found.bits is not None
        return Inference(~found.bits, None, found.probability, found.finite)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def test_file_that_disagrees_with_the_engine_is_not_kept(engine: Engine, tmp_path: Path) -> None:
    liar: Any = Liar(engine)
    with pytest.raises(TrainingError, match="disagrees with the engine on the sample"):
        export(liar, tmp_path / "out" / "model.pt2", format="torch")
    assert not list((tmp_path / "out").iterdir())


def test_format_is_told_by_the_suffix_or_refused(engine: Engine, tmp_path: Path) -> None:
    assert format_of(Path("a.ONNX")) == "onnx"
    assert format_of(Path("a.pt2")) == "torch"
    with pytest.raises(TrainingError, match=r"known: \.onnx, \.pt2"):
        format_of(Path("a.bin"))
    with pytest.raises(TrainingError, match="known: onnx, torch"):
        export(engine, tmp_path / "a.tflite", format="tflite")
