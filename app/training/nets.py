"""The net of a run: built, initialised, its encoder filled, or taken from a model to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from app.architectures import base as architectures
from app.architectures.initialise import initialise, load_encoder
from app.engine.base import FromHost
from app.engine.core import Core
from app.errors import TrainingError
from app.training.plan import Plan
from app.types import ClassSpec, Inference, ModelSpec, Pixels, Task

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build(plan: Plan, classes: int) -> tuple[nn.Module, str]:
    """The net on the CPU in float32, and in words what it starts from.

    Raises EngineError, CheckpointError and TrainingError.
    """
    architecture = architectures.get(plan.architecture)
    torch.manual_seed(plan.seed)
    net = architecture.build(**{**plan.parameters, "classes": classes})
    initialise(net, scheme=plan.scheme, transposed=plan.transposed)
    if plan.start is None:
        return net, load_encoder(net, plan.encoder, encoder=architecture.encoder)
    kept = _take(net, Path(plan.start))
    return net, f"{Path(plan.start).stem} ({kept} tensors)"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name. Raises TrainingError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as exc:
        raise TrainingError(f"`{path}` cannot be read as weights: {exc}") from exc


def _take(net: nn.Module, path: Path) -> int:
    """Weights of another model of this architecture; a last layer of other classes stays fresh."""
    state = weights_of(path)
    own = net.state_dict()
    fits = {k: v.to(own[k].dtype) for k, v in state.items() if k in own and v.shape == own[k].shape}
    left = [name for name in own if name not in fits]
    last = {name.rpartition(".")[0] for name in list(own)[-2:]}
    if any(name.rpartition(".")[0] not in last for name in left):
        raise TrainingError(
            f"`{path}` is not of the same architecture: {len(left)} of {len(own)} tensors do not "
            f"fit, the first `{left[0]}`"
        )
    net.load_state_dict({**own, **fits})
    return len(fits)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 RGB -> float32 with the ImageNet mean and deviation, channels last."""
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1) * 255
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def spec_of(
    plan: Plan,
    task: Task,
    classes: Sequence[ClassSpec],
    *,
    name: str = "run",
    weights: str = "",
    digest: str = "",
    threshold: float = 0.5,
) -> ModelSpec:
    """What an engine needs to know of a run's net."""
    architecture = architectures.get(plan.architecture)
    parameters: Mapping[str, Any] = architecture.complete(
        {**plan.parameters, "classes": len(classes)}
    )
    return ModelSpec(
        name=name,
        version=0,
        architecture=plan.architecture,
        parameters=parameters,
        task=task,
        classes=tuple(classes),
        mean=MEAN,
        std=STD,
        stride=architecture.stride,
        halo=architecture.halo(**parameters),
        threshold=threshold,
        precision="float32",
        digest=digest,
        weights=weights,
        weights_sha256=digest,
        sample_picture="",
        sample_mask="",
        longest_side=plan.longest_side,
    )


class NetEngine(FromHost):
    """A net in training as an engine, so that scoring has one way through pictures and tiles."""

    batch_sizes = (1,)

    def __init__(self, net: nn.Module, spec: ModelSpec, *, half: bool) -> None:
        self.spec, self.half = spec, half
        self.device = next(net.parameters()).device
        self._core = Core(net, task=spec.task, mean=spec.mean, std=spec.std).to(self.device).eval()

    @torch.inference_mode()
    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        """See `app.engine.base`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            mask, p, total = self._core(
                torch.from_numpy(pixels).to(self.device),
                torch.from_numpy(thresholds).to(self.device),
                probability,
            )
        found = mask.cpu().numpy()
        labels = self.spec.task == "multiclass"
        return Inference(
            bits=None if labels else found,
            labels=found if labels else None,
            probability=p.cpu().numpy() if probability else None,
            finite=np.isfinite(total.float().cpu().numpy()),
        )

    def prepare(self, height: int, width: int, batch: int) -> None:
        """Nothing to make ready."""

    def describe(self) -> Mapping[str, Any]:
        """Of little interest."""
        return {"backend": "training", "precision": "bfloat16" if self.half else "float32"}

    def close(self) -> None:
        """The net stays with the run."""
