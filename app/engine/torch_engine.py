"""An engine of plain torch: the fallback on the CPU, and the ground of the CUDA engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.base import FromHost, Precision, check_batch
from app.engine.core import Core
from app.engine.cores import quota_cores
from app.engine.fair_lock import FairLock
from app.engine.faults import verdict
from app.engine.nets import load_net
from app.errors import EngineError, EngineLost, InferenceFailed
from app.types import Inference, ModelSpec, Pixels

DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
# Mask, probability (None unless asked) and sums of logits, as arrays of the host.
Launched = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.float32]]


class TorchEngine(FromHost):
    """A model on a device of torch, without ceremony. See `app.engine.base` for the contract."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: Precision,
        device: str = "cpu",
        threads: int = 0,
        batch_sizes: tuple[int, ...] = (1,),
    ) -> None:
        """Load and place. Raises ModelDamaged and EngineError.

        `threads` is a setting of the whole process in torch; the last engine opened decides.
        """
        if spec.stride % 8:
            raise EngineError(
                f"the stride of {spec.label} is {spec.stride}; a multiple of 8 is needed"
            )
        self.spec = spec
        self.batch_sizes = batch_sizes
        self.precision = precision
        self.trials: Mapping[str, Any] = {}
        self.device = torch.device(device)
        self._lock = FairLock()
        self._lost: EngineLost | None = None
        # Asked once: `describe` must answer when the device no longer does.
        self._device_name = device_name(self.device)
        cores = threads or quota_cores()
        if self.device.type == "cpu" and cores:
            torch.set_num_threads(cores)
        net = load_net(spec)
        core = Core(net, task=spec.task, mean=spec.mean, std=spec.std, dtype=DTYPES[precision])
        self._core: Core | None = self._placed(core.eval())

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        check_batch(self.spec, pixels, thresholds)
        count, height, width, _ = pixels.shape
        with self._lock:
            core = self._usable()
            try:
                with torch.inference_mode():
                    mask, p, total = self._launch(core, pixels, thresholds, probability)
            except (RuntimeError, MemoryError) as exc:
                raise self._fault(exc, f"infer of {count} x {height} x {width}") from exc
            labels = self.spec.task == "multiclass"
            return Inference(
                bits=None if labels else mask,
                labels=mask if labels else None,
                probability=p,
                finite=np.isfinite(total),
            )

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Nothing: eager torch has nothing to make ready."""

    def describe(self) -> Mapping[str, Any]:
        return {
            "backend": "torch",
            "device": str(self.device),
            "device_name": self._device_name,
            "version": torch.__version__,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "batch_sizes": self.batch_sizes,
            "trials": self.trials,
            "shapes": [],
        }

    def close(self) -> None:
        with self._lock:
            self._core = None

    def _placed(self, core: Core) -> Core:
        return core.to(self.device).to(memory_format=torch.channels_last)

    def _launch(
        self,
        core: Core,
        pixels: Pixels,
        thresholds: NDArray[np.float32],
        probability: bool,
    ) -> Launched:
        """Run the core on fresh memory; the lock is held."""
        mask, p, total = core(tensor_of(pixels), tensor_of(thresholds), probability)
        return mask.numpy(), p.numpy() if probability else None, total.numpy()

    def _usable(self) -> Core:
        if self._lost is not None:
            # A dead context is never touched again.
            raise EngineLost(self._lost.detail)
        if self._core is None:
            raise InferenceFailed(f"the engine of {self.spec.label} is closed")
        return self._core

    def _fault(self, error: BaseException, doing: str) -> InferenceFailed:
        found = verdict(error, alive=self._alive, doing=doing)
        if isinstance(found, EngineLost):
            self._lost = found
        return found

    def _alive(self) -> bool:
        return True


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """A tensor on the memory of `array`, or on a copy if that is read-only: torch would warn."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def device_name(device: torch.device) -> str:
    """The device as its maker calls it; of the CPU, what torch finds it able to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
