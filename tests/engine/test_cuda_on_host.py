"""The CUDA engine's own logic, with the host in the place of the device: streams and events that do
nothing, and graphs that compute again. What a device makes of it is in test_cuda.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.engine import cuda
from app.engine.cuda import CudaEngine
from app.errors import DeviceOutOfMemory, EngineLost, InferenceFailed
from app.types import ModelSpec, Pixels
from tests.engine.plain import limits, unpacked


class Idle:
    """A stream, an event, or a choice of one of them: nothing to wait for."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...

    def _nothing(self, *args: Any) -> None: ...

    record = synchronize = wait_event = wait_stream = _nothing

    def elapsed_time(self, other: Idle) -> float:
        return 1.0


class Graph:
    """Computes again what was computed while it was captured, into the same memory."""

    replays = 0

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None

    def replay(self) -> None:
        Graph.replays += 1
        self.again()


class Host:
    """The module's view of torch, without a device."""

    def __init__(self, core: Callable[[], nn.Module]) -> None:
        self._core = core
        self.failing: Exception | None = None
        self.benchmarked_in_capture = False

    @contextlib.contextmanager
    def graph(self, graph: Graph, **options: Any) -> Iterator[None]:
        assert options["capture_error_mode"] == "thread_local"
        assert not torch.backends.cudnn.benchmark, "what does not fit would be tried out"

        def look(core: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            def again() -> None:
                for old, new in zip(outputs, core(*inputs), strict=True):
                    old.copy_(new)

            graph.again = again

        hook = self._core().register_forward_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def synchronize(self, device: Any = None) -> None:
        if self.failing is not None:
            raise self.failing


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    engines: list[CudaEngine] = []
    host = Host(lambda: engines[-1]._core)  # type: ignore[arg-type, return-value]
    placed = CudaEngine._placed

    def seen(engine: CudaEngine, core: Any) -> Any:
        engines.append(engine)
        return placed(engine, core)

    def unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *a, pin_memory=False, **o: make(*a, **o)

    monkeypatch.setattr(CudaEngine, "_placed", seen)
    for name in ("Stream", "Event", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, Idle)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Idle())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", host.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", host.synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "empty", unpinned(torch.empty))
    monkeypatch.setattr(torch, "full", unpinned(torch.full))
    monkeypatch.setattr(
        torch,
        "cudnn_convolution_relu",
        lambda x, w, b, *r: nn.functional.conv2d(x, w, b, *r).relu(),
    )
    # One kernel, that is timed first, takes half as long as three.
    turns = iter([1.0, 2.0] * 1000)
    monkeypatch.setattr(cuda, "_seconds", lambda call: next(turns))
    Graph.replays = 0
    yield host
    cuda._LOCKS.clear()


@pytest.fixture
def engine(host: Host, specs: dict[str, ModelSpec]) -> CudaEngine:
    return CudaEngine(specs["binary"], precision="float32", device="cpu", batch_sizes=(1, 2, 4))


def same(found: Any, wanted: Any, width: int = 96) -> bool:
    return bool((unpacked(found.bits, width) != unpacked(wanted.bits, width)).mean() < 1e-3)


def test_prepared_shapes_are_replayed_and_others_computed(
    engine: CudaEngine, torch_engines: Any, tiles: Pixels
) -> None:
    wanted = torch_engines["binary"].infer(tiles, limits(0.3, 0.55))
    assert same(engine.infer(tiles, limits(0.3, 0.55)), wanted)
    assert Graph.replays == 0
    for _ in range(2):
        engine.prepare(64, 96, 2)
    assert engine.describe()["shapes"] == [(2, 64, 96)]
    assert engine.describe()["fused_layers"] == [14]
    first = engine.infer(tiles, limits(0.3, 0.55))
    assert Graph.replays == 1
    assert same(first, wanted)
    # The next replay writes over nothing that was given out.
    assert first.bits is not None
    held = first.bits.copy()
    assert same(
        engine.infer(255 - tiles, limits(0.5, 0.5)),
        torch_engines["binary"].infer(255 - tiles, limits(0.5, 0.5)),
    )
    np.testing.assert_array_equal(first.bits, held)
    # One rides in the graph of two; a batch that asks for probabilities in none.
    assert same(
        engine.infer(tiles[:1], limits(0.3)), torch_engines["binary"].infer(tiles[:1], limits(0.3))
    )
    assert Graph.replays == 3
    grey = engine.infer(tiles, limits(0.5, 0.5), probability=True).probability
    theirs = torch_engines["binary"].infer(tiles, limits(0.5, 0.5), probability=True).probability
    assert grey is not None
    assert np.abs(grey.astype(int) - theirs).max() <= 1
    assert Graph.replays == 3


def test_staged_batch_is_the_one_that_is_computed(
    engine: CudaEngine, torch_engines: Any, tiles: Pixels
) -> None:
    engine.prepare(64, 96, 2)
    first, second = engine.stage(list(tiles)), engine.stage(list(255 - tiles))
    for pixels, batch in ((tiles, first), (255 - tiles, second)):
        wanted = torch_engines["binary"].infer(pixels, limits(0.5, 0.5))
        assert same(engine.infer(batch, limits(0.5, 0.5)), wanted)
    assert len(list(engine._coming.items())) == 0


def test_engines_of_one_device_take_turns(host: Host, specs: dict[str, ModelSpec]) -> None:
    one, other = (
        CudaEngine(specs[task], precision="float32", device="cpu")
        for task in ("binary", "multilabel")
    )
    assert one._lock is other._lock


def test_memory_that_runs_out_is_given_back_before_anybody_tries_again(
    engine: CudaEngine, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.prepare(64, 96, 2)
    alive: list[int] = []
    emptied: list[int] = []

    class Map:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def full(*args: Any) -> None:
        computed = Map()
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {id(computed)}")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(alive)))
    monkeypatch.setattr(engine, "_replay", full)
    with pytest.raises(DeviceOutOfMemory, match="no memory for infer of 2 x 64 x 96"):
        engine.infer(tiles, limits(0.5, 0.5))
    assert emptied == [0]
    assert engine.describe()["shapes"] == []
    engine.infer(tiles, limits(0.5, 0.5))


def test_device_that_no_longer_answers_is_never_touched_again(
    engine: CudaEngine, host: Host, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "_eager", broken)
    with pytest.raises(InferenceFailed) as caught:
        engine.infer(tiles, limits(0.5, 0.5))
    assert not isinstance(caught.value, EngineLost)
    host.failing = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(EngineLost):
        engine.infer(tiles, limits(0.5, 0.5))
    monkeypatch.undo()
    with pytest.raises(EngineLost):
        engine.prepare(64, 96, 2)
    engine.close()
