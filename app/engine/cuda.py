"""The CUDA engine: torch in channels_last, pinned copies, a CUDA graph per prepared batch shape,
with convolution and ReLU in one kernel wherever that is found faster (`app.engine.fusion`).

uint8 pixels go up and packed bits come down; everything between happens on the device, on a stream
of this engine's own. A batch goes up while the one before it is computed: it is staged in pinned
memory by the batcher's other thread, and copied by another stream. A shape that was not prepared
runs eagerly, and so does a batch whose probabilities are asked for.

Sources: https://docs.pytorch.org/docs/stable/notes/cuda.html, sections "CUDA Graphs" (capture on a
side stream after warm-up, shared pools) and "Use pinned memory buffers".
"""

from __future__ import annotations

import contextlib
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.base import Precision, check_batch, stacked
from app.engine.core import Core
from app.engine.fair_lock import FairLock
from app.engine.faults import chain_of
from app.engine.fusion import choosing, fuse, fused, fusing
from app.engine.recent import Recent
from app.engine.torch_engine import Launched, TorchEngine
from app.errors import DeviceOutOfMemory, EngineError, InferenceFailed
from app.types import ModelSpec, Pixels

# Every graph shares one pool, so a further one costs its buffers and a few MB of kernel nodes.
GRAPHS = 32
# Eager runs before a capture: the first chooses cuDNN's algorithms, the rest settle the allocator.
WARM_RUNS = 3
# Times that a layer is computed to see how long it takes.
TIMED_RUNS = 5
# Batches that are on their way up: one behind the one that is computed, and one that may turn out
# not to be wanted.
COMING = 2
# Of each device, for all engines on it. While one captures, no other thread may wait for the whole
# device or try algorithms out: that would spoil the capture
# (https://docs.nvidia.com/cuda/cuda-c-programming-guide/, "Prohibited and Unhandled Operations" of
# stream capture). And `torch.backends.cudnn.benchmark` is one switch for the process.
_LOCKS: dict[torch.device, FairLock] = {}
Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Captured:
    """One graph with the memory that it reads and writes, on the device and pinned on the host."""

    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    thresholds: torch.Tensor
    mask: torch.Tensor
    total: torch.Tensor
    host_thresholds: torch.Tensor
    host_mask: torch.Tensor
    host_total: torch.Tensor
    fused: int


@dataclass(frozen=True, slots=True)
class Coming:
    """A staged batch: its memory on the host, and the copy of it that is being made above."""

    pixels: weakref.ref[Pixels]
    above: torch.Tensor
    there: torch.cuda.Event


class CudaEngine(TorchEngine):
    """A model on an NVIDIA device. See `app.engine.base` for the contract."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: Precision,
        device: str = "cuda:0",
        batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16),
    ) -> None:
        """Load and place. Raises ModelDamaged and EngineError, DeviceOutOfMemory included in it."""
        # float32 means float32: TensorFloat-32, torch's default for convolutions, keeps 10 bits.
        # Not by `allow_tf32`, which some versions of torch warn of.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        try:
            super().__init__(spec, precision=precision, device=device, batch_sizes=batch_sizes)
        except RuntimeError as exc:
            raise EngineError(f"{spec.label} cannot be placed on {device}: {exc}") from exc
        self._graphs: Recent[Key, Captured] = Recent(GRAPHS)
        # By the identity of the staged array; its own lock, so that staging never waits for the
        # batch that is being computed.
        self._coming: Recent[int, Coming] = Recent(COMING)
        self._coming_lock = threading.Lock()

    def _placed(self, core: Core) -> Core:
        self._lock = _LOCKS.setdefault(self.device, self._lock)
        with self._lock, torch.cuda.device(self.device):
            placed = super()._placed(core)
            self._layers = fuse(placed, torch.cudnn_convolution_relu)
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            # torch hands the same few streams out again and again. Those of another priority are
            # others: what goes up is never on a stream that is being captured.
            self._upwards = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
            # Blocking: the thread sleeps instead of spinning, and leaves its core to the decoders.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            # What was placed on the default stream must be there before another stream reads it.
            torch.cuda.synchronize(self.device)
        return placed

    def stage(self, tiles: Sequence[Pixels]) -> Pixels:
        """In pinned memory, and on its way up. A device that has no room for it, or is lost, is
        left to `infer` to tell of.
        """
        try:
            host = torch.empty((len(tiles), *tiles[0].shape), dtype=torch.uint8, pin_memory=True)
            pixels: Pixels = host.numpy()
            for row, tile in zip(pixels, tiles, strict=True):
                row[:] = tile
            with torch.cuda.device(self.device), torch.cuda.stream(self._upwards):
                above = host.to(self.device, non_blocking=True)
                there = torch.cuda.Event()  # type: ignore[no-untyped-call]
                there.record(self._upwards)
        except RuntimeError:
            return stacked(tiles)
        with self._coming_lock:
            self._coming.put(id(pixels), Coming(weakref.ref(pixels), above, there))
        return pixels

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Choose cuDNN's algorithms for the shape and capture a graph. Batches wait meanwhile, on
        every engine of the device: prepare one shape after the other, so that they come in between.
        """
        key = (batch, height, width)
        blank = np.zeros((batch, height, width, 3), np.uint8)
        check_batch(self.spec, blank, np.zeros(batch, np.float32))
        with self._lock:
            core = self._usable()
            if key in self._graphs:
                return
            try:
                with torch.cuda.device(self.device), torch.inference_mode():
                    self._graphs.put(key, self._capture(core, blank))
            except (RuntimeError, MemoryError) as exc:
                raise self._fault(exc, f"capture of {batch} x {height} x {width}") from exc

    def describe(self) -> Mapping[str, Any]:
        shapes = sorted((shape, graph.fused) for shape, graph in self._graphs.items())
        return {
            **super().describe(),
            "backend": "cuda",
            "shapes": [shape for shape, _ in shapes],
            # Of each shape: layers whose convolution and ReLU are one kernel.
            "fused_layers": [count for _, count in shapes],
        }

    def close(self) -> None:
        super().close()
        with self._lock:
            self._graphs.clear()
            self._forget_coming()
            if self._lost is None:
                torch.cuda.empty_cache()

    def _launch(
        self,
        core: Core,
        pixels: Pixels,
        thresholds: NDArray[np.float32],
        probability: bool,
    ) -> Launched:
        with torch.cuda.device(self.device):
            coming = self._come(pixels)
            captured = None if probability else self._captured(pixels)
            if captured is not None:
                return self._replay(captured, pixels, coming, thresholds)
            return self._eager(core, pixels, coming, thresholds, probability)

    def _come(self, pixels: Pixels) -> Coming | None:
        """The copy of this very batch that is above already, or on its way."""
        with self._coming_lock:
            found = self._coming.get(id(pixels))
            if found is None or found.pixels() is not pixels:
                return None
            self._coming.drop(lambda key: key == id(pixels))
            return found

    def _above(self, pixels: Pixels, coming: Coming | None) -> torch.Tensor:
        """The batch on the device, for what this engine's stream does next."""
        if coming is not None:
            self._stream.wait_event(coming.there)
            return coming.above
        # torch keeps pinned memory from others until the copies out of it are done.
        staged = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        staged.numpy()[:] = pixels
        return staged.to(self.device, non_blocking=True)

    def _forget_coming(self) -> None:
        with self._coming_lock:
            self._coming.clear()

    def _captured(self, pixels: Pixels) -> Captured | None:
        """The graph of this batch, or of the next batch size, whose further rows are then idle."""
        count, height, width, _ = pixels.shape
        for size in (count, *[size for size in self.batch_sizes if size > count][:1]):
            found = self._graphs.get((size, height, width))
            if found is not None:
                return found
        return None

    def _replay(
        self,
        captured: Captured,
        pixels: Pixels,
        coming: Coming | None,
        thresholds: NDArray[np.float32],
    ) -> Launched:
        count = len(pixels)
        captured.host_thresholds.numpy()[:count] = thresholds
        with torch.cuda.stream(self._stream):
            # Within the device, where a batch takes some microseconds.
            captured.pixels[:count].copy_(self._above(pixels, coming), non_blocking=True)
            captured.thresholds.copy_(captured.host_thresholds, non_blocking=True)
            captured.graph.replay()
            captured.host_mask.copy_(captured.mask, non_blocking=True)
            captured.host_total.copy_(captured.total, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        # The pinned buffers are written again by the next replay: what is given back is a copy.
        mask, total = captured.host_mask.numpy(), captured.host_total.numpy()
        return mask[:count].copy(), None, total[:count].copy()

    def _eager(
        self,
        core: Core,
        pixels: Pixels,
        coming: Coming | None,
        thresholds: NDArray[np.float32],
        probability: bool,
    ) -> Launched:
        limits = torch.empty(thresholds.shape, dtype=torch.float32, pin_memory=True)
        limits.numpy()[:] = thresholds
        with torch.cuda.stream(self._stream):
            outputs = core(
                self._above(pixels, coming),
                limits.to(self.device, non_blocking=True),
                probability,
            )
            hosts = [_pinned_like(output) for output in outputs]
            for host, output in zip(hosts, outputs, strict=True):
                host.copy_(output, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        # Copies too: pinned memory is scarce and goes back to torch's pool when this returns.
        mask, p, total = (host.numpy().copy() for host in hosts)
        return mask, p if probability else None, total

    def _capture(self, core: Core, blank: Pixels) -> Captured:
        pixels = torch.zeros(blank.shape, dtype=torch.uint8, device=self.device)
        thresholds = torch.full((len(blank),), 0.5, device=self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream), _benchmark():
            # Something to compare the two ways of a layer on. Not drawn on the device: torch's
            # generator takes part in every capture.
            noise = np.random.default_rng(0).integers(0, 256, blank.shape, np.uint8)
            pixels.copy_(torch.from_numpy(noise))
            with choosing(self._layers, _seconds):
                core(pixels, thresholds, False)
        graph = torch.cuda.CUDAGraph()
        # Only here: algorithms are kept for each thread, so that on another one a layer in one
        # kernel would be computed by one that nobody timed or compared.
        with fusing(self._layers):
            with torch.cuda.stream(self._stream), _benchmark():
                count = fused(self._layers, lambda: core(pixels, thresholds, False))
                for _ in range(WARM_RUNS - 1):
                    core(pixels, thresholds, False)
            self._stream.synchronize()
            # Not in the capture itself: what does not fit then would be tried out, and spoil it.
            # thread_local: the thread that stages the next batch may allocate meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                mask, _, total = core(pixels, thresholds, False)
        return Captured(
            graph=graph,
            pixels=pixels,
            thresholds=thresholds,
            mask=mask,
            total=total,
            host_thresholds=torch.full((len(blank),), 0.5, pin_memory=True),
            host_mask=_pinned_like(mask),
            host_total=_pinned_like(total),
            fused=count,
        )

    def _fault(self, error: BaseException, doing: str) -> InferenceFailed:
        found = super()._fault(error, doing)
        if isinstance(found, DeviceOutOfMemory):
            # Graphs are a luxury: their pool may be what the batch lacked. Hot shapes are prepared
            # again by whoever asked for them.
            self._graphs.clear()
            self._forget_coming()
            # What the batch had computed so far lives in the frames that it was computed in, and
            # they as long as the error.
            for one in chain_of(error):
                traceback.clear_frames(one.__traceback__)
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        return found

    def _alive(self) -> bool:
        # A sticky error comes back from every call, and first of all from this one.
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True


def _seconds(call: Callable[[], torch.Tensor]) -> float:
    """How long a call takes the device, on the stream of this thread."""
    call()  # cuDNN chooses its algorithm
    begun = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begun.record()
    for _ in range(TIMED_RUNS):
        call()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1000 / TIMED_RUNS


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


@contextlib.contextmanager
def _benchmark() -> Iterator[None]:
    """cuDNN tries its algorithms on shapes that stay; on passing ones the trial would cost more."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
