"""Fine-tune one net on crops of scenes; survive a kill at any moment; keep the best weights.

A run lives in a folder: `run.json` (the plan, whole), `log.jsonl` (one line per report),
`last.pt` (everything needed to go on) and `best.safetensors`. The learning rate follows a half
cosine after a short warm-up; what is scored and kept is the moving average of the weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Sampler

from app.architectures import base as architectures
from app.architectures.initialise import initialise, load_encoder
from app.errors import TrainingError
from app.training.crops import CropPlan, Crops
from app.training.losses import IGNORE, cross_entropy_minus_log_jaccard
from app.training.scenes import Scene, pairs, read_pair, scenes
from app.training.scores import Counts, Scores, count

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Plan:
    """All that decides a run; the same plan on the same machine gives the same curve.

    `data` maps a folder to its share of the crops. `steps` counts optimiser steps of `batch` crops.
    """

    data: dict[str, float]
    validate: list[str]
    out: str
    architecture: str = "ternausnet11"
    parameters: dict[str, Any] = field(default_factory=dict)
    encoder: str = "imagenet"
    scheme: str = "he"
    transposed: str = "bilinear"
    steps: int = 1000
    batch: int = 8
    rate: float = 3e-4
    encoder_rate: float = 0.3
    decay: float = 1e-4
    warmup: int = 40
    average: float = 0.99
    jaccard_weight: float = 1.0
    crop: CropPlan = field(default_factory=CropPlan)
    half: bool = True
    seed: int = 1
    report: int = 10
    save: int = 25
    score: int = 150
    workers: int = 1


class _From(Sampler[int]):
    """Indices from `start` on: a resumed run skips what it has seen."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end - self.start


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 RGB -> float32 with the ImageNet mean and deviation, channels last."""
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1) * 255
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def pad_to(pixels: np.ndarray, stride: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Reflect (H, W, 3) on all sides, evenly, to multiples of `stride`; gives the top-left pad."""
    height, width = pixels.shape[:2]
    rows, columns = -height % stride, -width % stride
    top, left = rows // 2, columns // 2
    padded = np.pad(pixels, ((top, rows - top), (left, columns - left), (0, 0)), mode="reflect")
    return padded, (top, left)


@torch.inference_mode()
def probabilities(net: nn.Module, scene: Scene, *, stride: int, half: bool) -> np.ndarray:
    """(H, W) float32 probability of class 1 of a binary net, for a scene that fits the memory."""
    padded, (top, left) = pad_to(scene.pixels, stride)
    device = next(net.parameters()).device
    batch = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))[None].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits = net(normalise(batch))
    height, width = scene.labels.shape
    return logits[0, 0, top : top + height, left : left + width].float().sigmoid().cpu().numpy()


def score(net: nn.Module, towns: list[Scene], *, stride: int, half: bool) -> Scores:
    """Scores at threshold 0.5 over whole pictures."""
    counts: list[Counts] = []
    for scene in towns:
        predicted = probabilities(net, scene, stride=stride, half=half) > 0.5
        counts.append(count(predicted, scene.labels == 1, scene.labels != IGNORE))
    return Scores.of(counts)


def train(plan: Plan, *, resume: bool, say: Callable[[str], None] = print) -> Path:
    """Run the plan to its end and return the path of the best weights.

    `resume` goes on from `last.pt` if there is one. Raises TrainingError for bad data, or for an
    `out` folder that already holds a run when not resuming.
    """
    return _Run(plan, resume=resume, say=say).go()


class _Run:
    def __init__(self, plan: Plan, *, resume: bool, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.out = Path(plan.out)
        self.last = self.out / "last.pt"
        if self.last.exists() and not resume:
            raise TrainingError(
                f"`{plan.out}` already holds a run; resume it or name another folder"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(plan.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        architecture = architectures.get(plan.architecture)
        self.stride = architecture.stride
        self.net = architecture.build(**plan.parameters)
        initialise(self.net, scheme=plan.scheme, transposed=plan.transposed)
        self.encoder = load_encoder(self.net, plan.encoder, encoder=architecture.encoder)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).eval()
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.net.named_parameters():
            groups[name.startswith("encoder.")].append(parameter)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": groups[False], "scale": 1.0},
                {"params": groups[True], "scale": plan.encoder_rate},
            ],
            lr=plan.rate,
            weight_decay=plan.decay,
        )
        self.step = 0
        self.best = -1.0
        if self.last.exists():
            self._load()
        (self.out / "run.json").write_text(
            json.dumps(
                {**asdict(plan), "encoder_words": self.encoder, "torch": torch.__version__},
                indent=1,
            )
        )

    def _load(self) -> None:
        state = torch.load(self.last, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best = state["step"], state["best"]
        self.say(f"resumed at step {self.step}")

    def _save(self) -> None:
        partial = self.last.with_suffix(".partial")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
            },
            partial,
        )
        os.replace(partial, self.last)

    def _rate(self) -> float:
        plan = self.plan
        if self.step < plan.warmup:
            return plan.rate * (self.step + 1) / plan.warmup
        done = (self.step - plan.warmup) / max(1, plan.steps - plan.warmup)
        return plan.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _loader(self) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        plan = self.plan
        towns = [scenes(Path(folder)) for folder in plan.data]
        crops = Crops(
            towns,
            list(plan.data.values()),
            plan.crop,
            seed=plan.seed,
            length=plan.steps * plan.batch,
        )
        return DataLoader(
            crops,
            batch_size=plan.batch,
            sampler=_From(self.step * plan.batch, plan.steps * plan.batch),
            num_workers=plan.workers,
            prefetch_factor=4 if plan.workers else None,
        )

    def _note(self, **row: Any) -> None:
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, **row}) + "\n")
        self.say(
            " ".join(
                [
                    f"step {self.step}/{self.plan.steps}",
                    *(
                        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items()
                    ),
                ]
            )
        )

    def _learn(self, pixels: torch.Tensor, labels: torch.Tensor) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate() * group["scale"]
        self.net.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.half):
            logits = self.net(normalise(pixels.to(self.device)))
        loss = cross_entropy_minus_log_jaccard(
            logits, labels.to(self.device), jaccard_weight=self.plan.jaccard_weight
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimiser.step()
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(
                self.average.state_dict().values(), self.net.state_dict().values(), strict=True
            ):
                if slow.dtype.is_floating_point:
                    slow.lerp_(fast, 1 - keep)
                else:
                    slow.copy_(fast)
        return float(loss.detach())

    def _score(self, validation: list[Scene]) -> None:
        found = score(self.average, validation, stride=self.stride, half=self.plan.half)
        self._note(iou=found.iou, dice=found.dice, mean_iou=found.mean_iou)
        if (found.iou or 0.0) > self.best:
            self.best = found.iou or 0.0
            state = {k: v.contiguous() for k, v in self.average.state_dict().items()}
            partial = self.out / "best.partial"
            save_file(state, partial)
            os.replace(partial, self.out / "best.safetensors")

    def go(self) -> Path:
        plan = self.plan
        validation = [read_pair(pair) for folder in plan.validate for pair in pairs(Path(folder))]
        losses: list[float] = []
        since = time.monotonic()
        for pixels, labels in self._loader():
            losses.append(self._learn(pixels, labels))
            self.step += 1
            if self.step % plan.report == 0:
                seconds = time.monotonic() - since
                self._note(
                    loss=float(np.mean(losses)),
                    rate=self._rate(),
                    pictures_per_second=plan.batch * len(losses) / seconds,
                    minutes_left=seconds / len(losses) * (plan.steps - self.step) / 60,
                )
                losses, since = [], time.monotonic()
            if self.step % plan.score == 0 or self.step == plan.steps:
                self._score(validation)
                since = time.monotonic()
            if self.step % plan.save == 0 or self.step == plan.steps:
                self._save()
        return self.out / "best.safetensors"
