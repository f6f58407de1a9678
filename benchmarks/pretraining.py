"""Is a pre-trained encoder worth it? The claim of arXiv 1801.05746, on our own data.

    python -m benchmarks.pretraining DATA --vgg11 FILE --vgg16 FILE

trains, with the same crops and the same number of steps, TernausNet-11 from scratch (LeCun uniform,
as the paper does), TernausNet-11 with a pre-trained encoder and TernausNet-16 with one, each with
several seeds, on every town below DATA but the one that is scored on. A run that was killed goes on
where it was; finished ones are not repeated. Writes curves (IoU over all pixels at threshold 0.5,
which nothing was chosen for, by steps) as JSON and PNG, and prints a table. What the JSON file
holds already of the same steps and crops stays in it, so that runs can be made one at a time:

    python -m benchmarks.pretraining ... --nets 16 --seeds 2 --json FILE

Runs of bf16 and of float32 are kept apart: compare those of one seed and one precision.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.training.charts import draw_lines
from app.training.crops import crop_plan
from app.training.journal import rows_of
from app.training.plan import Plan
from app.training.precision import computes_bfloat16
from app.training.ranks import own_device
from app.training.run import LOG
from app.training.train import train

# Of each net: its runs by seed and precision ("2", "2 float32"), each a list of (step, IoU).
Curve = list[tuple[float, float]]
Curves = dict[str, dict[str, Curve]]

SHARES = {"zanzibar": 0.36, "nairobi": 0.38, "philippines": 0.22, "dubai": 0.04}
HELD_BACK = "banepa"


def lines(vgg11: str, vgg16: str) -> dict[str, dict[str, Any]]:
    """What is compared: fields of the plan that differ."""
    return {
        "TernausNet-11, from scratch": {
            "architecture": "ternausnet11",
            "encoder": "none",
            "scheme": "lecun-uniform",
            # What has learnt nothing yet must all learn at the same rate.
            "encoder_rate": 1.0,
        },
        "TernausNet-11, pre-trained": {"architecture": "ternausnet11", "encoder": vgg11},
        "TernausNet-16, pre-trained": {"architecture": "ternausnet16", "encoder": vgg16},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with a folder for each town")
    parser.add_argument("--vgg11", required=True, help="`imagenet`, or a safetensors file")
    parser.add_argument("--vgg16", required=True, help="`imagenet`, or a safetensors file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nets", default="", help="only nets whose name has this in it")
    parser.add_argument("--float32", action="store_true", help="also where bf16 is native")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    asked.float32 = asked.float32 or not computes_bfloat16(own_device())
    base = Plan(
        data={str(asked.data / town): share for town, share in SHARES.items()},
        validate=(str(asked.data / HELD_BACK),),
        out="",
        crop=replace(crop_plan("aerial", asked.crop), zoom=(0.35, 1.4)),
        steps=asked.steps,
        batch=asked.batch,
        score=max(1, asked.steps // 10),
        half=not asked.float32,
    )
    curves = known(asked)
    for seed in asked.seeds:
        for name, fields in lines(asked.vgg11, asked.vgg16).items():
            if asked.nets not in name:
                continue
            run = f"{seed} float32" if asked.float32 else f"{seed}"
            out = asked.out / f"{name} {run}".lower().replace(",", "").replace(" ", "-")
            plan = replace(base, out=str(out), seed=seed, **fields)
            train(plan, resume=out.exists())
            curves.setdefault(name, {})[run] = curve(out / LOG)
            report(asked, curves)


def known(asked: argparse.Namespace) -> Curves:
    """Curves of the JSON file, where it was made with the same steps and crops."""
    if not (asked.json and asked.json.exists()):
        return {}
    said = json.loads(asked.json.read_text())
    if any(said[name] != getattr(asked, name) for name in ("steps", "batch", "crop")):
        raise SystemExit(f"{asked.json} is of other steps or crops: name another file")
    curves: Curves = said["curves"]
    return curves


def curve(log: Path) -> Curve:
    """(step, IoU) at each score of a run."""
    return [
        (row["step"], round(row.get("plain_iou", row["iou"]) or 0.0, 4))
        for row in rows_of(log)
        if "iou" in row
    ]


def report(asked: argparse.Namespace, curves: Curves) -> None:
    """Print and write what is known so far."""
    print(f"| {'net':<28} | seed      | last IoU | best IoU |")
    print(f"| {'-' * 28} | --------- | -------- | -------- |")
    for name, runs in curves.items():
        for run, points in runs.items():
            best = max(iou for _, iou in points)
            print(f"| {name:<28} | {run:<9} | {points[-1][1]:>8.3f} | {best:>8.3f} |", flush=True)
    if asked.json:
        said = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "steps": asked.steps,
            "batch": asked.batch,
            "crop": asked.crop,
            "scored_on": HELD_BACK,
            "curves": curves,
        }
        asked.json.write_text(json.dumps(said, indent=1) + "\n")
    if asked.plot:
        drawn = {name: list(runs.values()) for name, runs in curves.items()}
        draw_lines(drawn, asked.plot, across="steps", up=f"IoU on {HELD_BACK}")


if __name__ == "__main__":
    main()
