"""The end of a run: the threshold chosen, the best weights scored once more, and published.

Scores come from the engine that serves, on the half-precision weights that are published.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from app import __version__
from app.engine.choose import EngineOptions, open_engine
from app.store.store import ModelStore
from app.training.evaluate import Report, evaluate
from app.training.examples import Example
from app.training.journal import rows_of
from app.training.losses import IGNORE
from app.training.material import Material
from app.training.nets import spec_of
from app.training.plan import DESCRIPTION, Plan
from app.training.progress import counted
from app.training.publishing import Recipe, publish
from app.training.run import BEST, LOG
from app.training.segmenters import EngineSegmenter
from app.training.sheet import Sheet

PUBLISHED = "published.json"
# Sides of the sample in pixels: every start of every server computes it.
SAMPLE_SIDE = 512


@dataclass(frozen=True, slots=True)
class About:
    """What only a person can say of a model."""

    name: str
    description: str = ""
    licence: str = "unknown"
    data_licence: str = "unknown"
    notes: str = ""


def finish(
    plan: Plan,
    material: Material,
    *,
    store: ModelStore,
    about: About,
    options: EngineOptions,
    console: Console,
) -> str:
    """Publish the best weights of a finished run; the label. Once: a resumed run gets the same."""
    out = Path(plan.out)
    done = out / PUBLISHED
    if done.exists():
        return str(json.loads(done.read_text())["label"])
    report = final_scores(plan, material, options=options, console=console)
    (out / "scores.json").write_text(report.json())
    sample = out / "sample.png"
    sample.write_bytes(sample_of(material.validation, plan.longest_side))
    said = json.loads((out / DESCRIPTION).read_text())
    recipe = Recipe(
        architecture=plan.architecture,
        parameters=plan.parameters,
        task=material.task,
        classes=tuple(label.spec for label in material.classes),
        threshold=report.model.threshold,
        description=about.description,
        longest_side=plan.longest_side,
    )
    version = publish(
        store,
        about.name,
        weights=out / BEST,
        recipe=recipe,
        sample=sample,
        card=card(plan, material, report, about, said),
        licence={"identifier": about.licence},
        provenance={
            "data": _data(plan, about),
            "encoder": said["start"],
            "command": " ".join(["ternaus", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "frameworks": {"torch": torch.__version__, "ternausnet-serve": __version__},
            "more": {"plan": plan.as_json()},
        },
        scores=_scores(plan, report),
    )
    label = f"{about.name}@{version}"
    done.write_text(json.dumps({"label": label, "store": store.root}))
    return label


def final_scores(
    plan: Plan, material: Material, *, options: EngineOptions, console: Console
) -> Report:
    """Scores at the threshold that the validation pictures ask for; also a contact sheet."""
    out = Path(plan.out)
    specs = [label.spec for label in material.classes]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        state = load_file(out / BEST)
        save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, weights)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()

        def scored(threshold: float) -> tuple[Report, Sheet]:
            sheet = Sheet(material.task, len(specs))
            spec = spec_of(
                plan,
                material.task,
                specs,
                weights=str(weights),
                digest=digest,
                threshold=threshold,
            )
            engine = open_engine(spec, options)
            scenes = material.validation
            try:
                with counted("scoring what is published", console, len(scenes)) as tick:

                    def seen(*parts: Any) -> None:
                        sheet.show(*parts)
                        tick()

                    return evaluate(EngineSegmenter(engine), scenes, seen=seen), sheet
            finally:
                engine.close()

        # As the run found it, in its own precision: seldom another than that of these weights.
        first = _threshold_of(out / LOG)
        report, sheet = scored(first)
        best = report.best_threshold()
        if best is not None and best != first:
            report, sheet = scored(best)
    (out / "sheet.png").write_bytes(sheet.png())
    return report


def _threshold_of(log: Path) -> float:
    """Of the weights that were kept: those of the first of the best rows."""
    scored = [row for row in rows_of(log) if row.get("iou") is not None]
    best = max(scored, key=lambda row: row["iou"], default={})
    return float(best.get("threshold", 0.5))


def sample_of(examples: tuple[Example, ...], longest: int | None = None) -> bytes:
    """PNG of the most telling window: where about half of the pixels are of a class.

    Written anew from pixels, at the scale that the net is shown, so that nothing that a camera
    noted is published.
    """
    best: tuple[float, bytes] | None = None
    for example in examples[:200]:
        scene = example.read().shown(longest)
        height, width = scene.pixels.shape[:2]
        shown = ((scene.labels > 0) & (scene.labels != IGNORE)).any(axis=0)
        for top in range(0, max(1, height - SAMPLE_SIDE + 1), SAMPLE_SIDE):
            for left in range(0, max(1, width - SAMPLE_SIDE + 1), SAMPLE_SIDE):
                window = np.s_[top : top + SAMPLE_SIDE, left : left + SAMPLE_SIDE]
                share = float(shown[window].mean())
                worth = share * (1 - share)
                if best is None or worth > best[0]:
                    out = io.BytesIO()
                    Image.fromarray(scene.pixels[window]).save(out, "PNG")
                    best = (worth, out.getvalue())
    assert best is not None, "a run without validation pictures was refused"
    return best[1]


def _data(plan: Plan, about: About) -> list[Mapping[str, str]]:
    uses = [(place, "training") for place in plan.data]
    if plan.validate:
        uses += [(place, "validation") for place in plan.validate]
    else:
        uses = [(place, "training and validation") for place in plan.data]
    return [
        {"name": Path(place).name or place, "licence": about.data_licence, "use": use}
        for place, use in uses
    ]


def _scores(plan: Plan, report: Report) -> list[dict[str, Any]]:
    data = "validation: " + (
        ", ".join(Path(place).name for place in plan.validate)
        if plan.validate
        else f"held back of {', '.join(Path(place).name for place in plan.data)}"
    )
    found = []
    for c in report.classes:
        s = c.scores
        for measure, averaging, value in (
            ("iou", "pixels", s.iou),
            ("dice", "pixels", s.dice),
            ("precision", "pixels", s.precision),
            ("recall", "pixels", s.recall),
            ("boundary-iou", "pixels", c.boundary.iou),
            ("iou", "pictures", s.mean_iou),
            ("dice", "pictures", s.mean_dice),
        ):
            if value is not None:
                found.append(
                    {
                        "measure": measure,
                        "value": round(value, 5),
                        "averaging": averaging,
                        "data": data,
                        "pictures": s.pictures,
                        "counted": s.counted,
                        "of_class": c.name,
                        "note": "the threshold was chosen on these pictures"
                        if report.sweep
                        else "",
                    }
                )
    return found


def card(
    plan: Plan, material: Material, report: Report, about: About, said: Mapping[str, Any]
) -> str:
    """The model card, Markdown: what was done and measured, and nothing else."""
    lines = [
        f"# {about.name}",
        "",
        about.description or "Trained with `ternaus train`.",
        "",
        f"- Architecture: {plan.architecture}",
        f"- Task: {material.task}; classes: {', '.join(c.name for c in material.classes)}",
        f"- Started from: {said['start']}",
        f"- Steps: {plan.steps} of {plan.batch * plan.accumulate} crops of "
        f"{plan.crop.size} x {plan.crop.size} pixels; seed {plan.seed}",
        f"- Loss: {' + '.join(f'{weight:g} {name}' for name, weight in plan.loss.items())}",
        f"- Licence of the weights: {about.licence}",
        f"- Licence of the data: {about.data_licence}",
        "",
        "## Data",
        "",
        *(f"- {line}" for line in _public(material, plan)),
        "",
        "The sample picture is one of those that are scored on.",
        "",
        "## Scores",
        "",
        f"On {len(report.pictures)} pictures that were not trained on, at threshold "
        f"{report.model.threshold:g}" + (", which was chosen on them:" if report.sweep else ":"),
        "",
        "```",
        *report.table().splitlines()[1:],
        "```",
        "",
    ]
    if about.notes:
        lines += ["## Notes", "", about.notes, ""]
    return "\n".join(lines)


def _public(material: Material, plan: Plan) -> list[str]:
    """What was found in the data, without the paths of the machine that trained."""
    lines = []
    for line in material.words:
        shown = line
        for place in sorted((*plan.data, *plan.validate), key=len, reverse=True):
            shown = shown.replace(place, Path(place).name or place)
        lines.append(shown)
    return lines
