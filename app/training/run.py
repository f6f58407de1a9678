"""The loop: learn, report, score, save; killed at any moment it goes on where it was.

A run lives in a folder: `run.json` (the plan, whole), `log.jsonl` (one line for each report),
`last.pt` (everything needed to go on) and `best.safetensors`. What is scored and kept is the moving
average of the weights.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from app.errors import TrainingError
from app.training.evaluate import THRESHOLDS, truth_of
from app.training.journal import Journal
from app.training.losses import Objective
from app.training.material import Material
from app.training.nets import NetEngine, build, normalise, spec_of
from app.training.plan import DESCRIPTION, LAST, Plan
from app.training.progress import Tick
from app.training.ranks import Ranks, Share
from app.training.schedule import factor
from app.training.scores import Counts, count, mean
from app.training.segmenters import Answer, EngineSegmenter
from app.training.styles import StyleMixing

BEST, LOG = "best.safetensors", "log.jsonl"

Crop = tuple[torch.Tensor, torch.Tensor]


class Run:
    """One run of a plan, fresh or resumed from its folder.

    Raises TrainingError where the folder already holds a run and `resume` is not asked, or holds
    another one.
    """

    def __init__(
        self,
        plan: Plan,
        material: Material,
        ranks: Ranks,
        *,
        resume: bool,
        journal: Callable[[Path, int], Journal] = lambda path, step: Journal(path),
        say: Callable[[str], None] = lambda line: None,
        scoring: Callable[[int], Tick] = lambda total: lambda: None,
    ) -> None:
        self.plan, self.material, self.ranks, self.say = plan, material, ranks, say
        self._scoring = scoring
        self.out = Path(plan.out)
        self.last = self.out / LAST
        require_place(plan, resume=resume)
        net, self.start = build(plan, len(material.classes))
        self.net = net.to(ranks.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).eval()
        self.styles = StyleMixing(self.net, plan.style_mix, plan.seed)
        self.objective = Objective(plan.loss, material.task, plan.class_weights)
        self.optimiser = self._optimiser()
        self.step, self.best = 0, -1.0
        self.losses: list[float] = []
        resumed = self.last.exists()
        if resumed:
            self._load()
        ranks.wait()
        self.journal = journal(self.out / LOG, self.step)
        if ranks.first:
            self.out.mkdir(parents=True, exist_ok=True)
            if resumed:
                self.journal.rewind(self.step)
            else:
                (self.out / LOG).unlink(missing_ok=True)
                self._describe()
        self.trained = self._wrap()

    def go(self) -> Path:
        """To the last step; the path of the best weights."""
        plan, since = self.plan, time.monotonic()
        crops = iter(self._loader())
        for _ in range(self.step, plan.steps):
            self.losses.append(self._learn([next(crops) for _ in range(plan.accumulate)]))
            self.step += 1
            if self.step % plan.report == 0:
                self._report(time.monotonic() - since)
                since = time.monotonic()
            if self.step == plan.freeze:
                self.trained = self._wrap()
            if self.step % plan.score == 0 or self.step == plan.steps:
                self._score()
                since = time.monotonic()
            if self.step % plan.save == 0 or self.step == plan.steps:
                self._save()
        self.journal.close()
        self.ranks.wait()
        return self.out / BEST

    # Learning.

    def _optimiser(self) -> torch.optim.Optimizer:
        groups: dict[float, list[nn.Parameter]] = {1.0: [], self.plan.encoder_rate: []}
        for name, parameter in self.net.named_parameters():
            scale = self.plan.encoder_rate if name.startswith("encoder.") else 1.0
            groups[scale].append(parameter)
        return torch.optim.AdamW(
            [{"params": group, "scale": scale} for scale, group in groups.items() if group],
            lr=self.plan.rate,
            weight_decay=self.plan.decay,
        )

    def _wrap(self) -> nn.Module:
        """The net as it is trained now: with its encoder frozen, or thawed, and for all ranks."""
        frozen = self.step < self.plan.freeze
        for name, parameter in self.net.named_parameters():
            if name.startswith("encoder."):
                parameter.requires_grad_(not frozen)
        return self.ranks.wrap(self.net)

    def _loader(self) -> DataLoader[Crop]:
        plan, ranks = self.plan, self.ranks
        crops = self.material.crops(plan)
        per_step = plan.batch * plan.accumulate
        own = Share(
            self.step * per_step,
            plan.steps * per_step,
            batch=plan.batch,
            rank=ranks.rank,
            count=ranks.count,
        )
        # Workers share the decoded pictures of this process, which only a fork can.
        workers = plan.workers if "fork" in multiprocessing.get_all_start_methods() else 0
        return DataLoader(
            crops,
            batch_size=plan.batch // ranks.count,
            sampler=own,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,
            pin_memory=ranks.device.type == "cuda",
        )

    def _learn(self, batches: list[Any]) -> float:
        """One optimiser step; the mean loss of its batches."""
        plan, device = self.plan, self.ranks.device
        rate = plan.rate * factor(plan.schedule, self.step, steps=plan.steps, warmup=plan.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.net.train()
        if self.step < plan.freeze and hasattr(self.net, "encoder"):
            self.net.get_submodule("encoder").eval()
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        with self.styles.step(self.step, self.ranks.rank):
            for pixels, labels in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=plan.half):
                    logits = self.trained(normalise(pixels.to(device, non_blocking=True)))
                loss = self.objective(
                    logits, labels.to(device, non_blocking=True), together=self.ranks.together
                )
                (loss / plan.accumulate).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) / plan.accumulate
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss at step {self.step} is {total}; lower `--rate`, or look at the data"
            )
        nn.utils.clip_grad_norm_(self.net.parameters(), plan.clip)
        self.optimiser.step()
        self._follow()
        return total

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the net, faster at the beginning."""
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True)
        for slow, fast in pairs:
            if slow.dtype.is_floating_point:
                slow.lerp_(fast, 1 - keep)
            else:
                slow.copy_(fast)

    # Reporting.

    def _report(self, seconds: float) -> None:
        plan = self.plan
        per_step = seconds / max(1, min(plan.report, len(self.losses)))
        if self.ranks.first:
            self.journal.note(
                self.step,
                loss=float(np.mean(self.losses)),
                rate=self.optimiser.param_groups[0]["lr"],
                pictures_per_second=plan.batch * plan.accumulate / max(per_step, 1e-9),
                minutes_left=per_step * (plan.steps - self.step) / 60,
            )
        self.losses = []

    def _score(self) -> None:
        """IoU and Dice of the average, each rank taking its part of the pictures.

        At the threshold that gives the best IoU over all pixels, for that is what is published:
        where the classes are mixed otherwise than in training, 0.5 says little. `plain_iou` is that
        at 0.5.
        """
        totals = self._counts().sum(dim=0).tolist()
        if not self.ranks.first:
            return
        found = [[Counts(*(int(value) for value in row)) for row in rows] for rows in totals]
        at = max(range(len(found)), key=lambda i: mean(c.iou for c in found[i]) or 0.0)
        classes = found[at]
        iou, dice = mean(c.iou for c in classes), mean(c.dice for c in classes)
        of_class: dict[str, float | None] = {}
        if self.material.task != "multiclass":
            of_class["threshold"] = THRESHOLDS[at]
            # For comparisons that nothing was chosen for.
            of_class["plain_iou"] = mean(c.iou for c in found[THRESHOLDS.index(0.5)])
        if len(classes) > 1:
            listed = self.material.classes[-len(classes) :]
            of_class |= {
                f"iou {label.name}": c.iou for label, c in zip(listed, classes, strict=True)
            }
        self.journal.note(self.step, iou=iou, dice=dice, **of_class)
        if (iou or 0.0) > self.best:
            self.best = iou or 0.0
            state = {k: v.contiguous().cpu() for k, v in self.average.state_dict().items()}
            partial = self.out / "best.partial"
            save_file(state, partial)
            os.replace(partial, self.out / BEST)

    def _counts(self) -> torch.Tensor:
        """(pictures, thresholds, classes, 3) int64: true positives, false positives, false
        negatives. Exclusive classes have no threshold: one line.
        """
        material, ranks = self.material, self.ranks
        specs = [label.spec for label in material.classes]
        engine = NetEngine(
            self.average, spec_of(self.plan, material.task, specs), half=self.plan.half
        )
        exclusive = material.task == "multiclass"
        segmenter = EngineSegmenter(engine, probability=not exclusive)
        listed, lines = len(segmenter.model.listed), 1 if exclusive else len(THRESHOLDS)
        found = torch.zeros(len(material.validation), lines, listed, 3, dtype=torch.int64)
        own = range(ranks.rank, len(material.validation), ranks.count)
        tick = self._scoring(len(own))
        for index in own:
            scene = material.validation[index].read()
            answer = segmenter.segment(scene.pixels)
            truths, valids = truth_of(scene.labels, material.task, len(specs))
            for line, planes in enumerate(_planes(answer, exclusive=exclusive)):
                for place, parts in enumerate(zip(planes, truths, valids, strict=True)):
                    c = count(*parts)
                    found[index, line, place] = torch.tensor(
                        [c.true_positive, c.false_positive, c.false_negative]
                    )
            tick()
        return ranks.together(found.to(ranks.device)).cpu()

    # Keeping.

    def _describe(self) -> None:
        (self.out / DESCRIPTION).write_text(
            json.dumps(
                {
                    "plan": self.plan.as_json(),
                    "task": self.material.task,
                    "classes": [label.name for label in self.material.classes],
                    "start": self.start,
                    "data": list(self.material.words),
                    "training": list(self.material.training),
                    "validation": [example.name for example in self.material.validation],
                    "processes": self.ranks.count,
                    "device": str(self.ranks.device),
                    "torch": torch.__version__,
                },
                indent=1,
            )
        )

    def _load(self) -> None:
        try:
            state = torch.load(self.last, map_location=self.ranks.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.best = state["step"], state["best"]
            self.losses = list(state["losses"])
        # A damaged file can raise nearly anything. torch's own message is not passed on: it advises
        # to load the file unsafely.
        except Exception as exc:
            raise TrainingError(
                f"`{self.last}` cannot be resumed from: it is damaged ({type(exc).__name__})"
            ) from exc
        if self.ranks.first:
            self.say(f"resumed at step {self.step}")

    def _save(self) -> None:
        if not self.ranks.first:
            return
        partial = self.last.with_suffix(".partial")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
                "losses": self.losses,
            },
            partial,
        )
        os.replace(partial, self.last)


def _planes(answer: Answer, *, exclusive: bool) -> Iterator[NDArray[np.bool_]]:
    """(C, H, W) bool at each threshold; of exclusive classes the one answer that there is."""
    if exclusive:
        yield answer.planes
        return
    for threshold in THRESHOLDS:
        yield answer.above(threshold)


def require_place(plan: Plan, *, resume: bool) -> None:
    """Raise TrainingError where the folder holds a run that is not to be gone on with."""
    out = Path(plan.out)
    if (out / LAST).exists():
        if not resume:
            raise TrainingError(
                f"`{out}` already holds a run; go on with `--resume`, or name another folder"
            )
        plan.require_same(out / DESCRIPTION)
