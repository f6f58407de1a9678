"""The net alone, engine by engine: side by side in one run, by turns, against eager float32 torch.

    python benchmarks/engine.py --sides 256 512 1024 --rounds 5 --json results.json

Every contender answers the same picture, from uint8 pixels to packed bits, batch of one. The
machine may be noisy, so the contenders take turns and the fastest round of each counts; the ratio
to eager torch is what to quote, not the milliseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.architectures.base import get
from app.architectures.initialise import initialise
from app.engine.base import Engine, Precision
from app.engine.choose import EngineOptions, open_engine
from app.engine.nets import load_net
from app.types import ClassSpec, Halo, ModelSpec, Pixels

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="ternausnet11")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = random_model(arguments.architecture, Path(folder))
        contenders = open_all(spec, Path(folder), arguments.threads)
        rows = [row for side in arguments.sides for row in race(contenders, side, arguments.rounds)]
    report = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "architecture": arguments.architecture,
        "engines": {name: describe for name, (_, describe) in contenders.items()},
        "rows": rows,
    }
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str))


def random_model(architecture: str, folder: Path) -> ModelSpec:
    """A model with seeded random weights; speed does not depend on what they say."""
    family = get(architecture)
    net = family.build(classes=1)
    initialise(net, generator=torch.Generator().manual_seed(0))
    weights = folder / "weights.safetensors"
    save_file({name: value.half() for name, value in net.state_dict().items()}, weights)
    return ModelSpec(
        name="random",
        version=1,
        architecture=architecture,
        parameters={"classes": 1},
        task="binary",
        classes=(ClassSpec("foreground", (255, 255, 255)),),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        stride=family.stride,
        halo=Halo(0, 0, 0, 0),
        threshold=0.5,
        precision="float32",
        digest="",
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        weights=str(weights),
        sample_picture="",
        sample_mask="",
    )


Run = Callable[[Pixels], Any]


def open_all(spec: ModelSpec, folder: Path, threads: int) -> dict[str, tuple[Run, Any]]:
    """Every engine that this machine can open, eager torch first."""
    contenders: dict[str, tuple[Run, Any]] = {"torch eager float32": (eager(spec), {})}
    choices = [("torch", "cpu")]
    if find_spec("openvino") is not None:
        choices.append(("openvino", "cpu"))
    if torch.cuda.is_available():
        choices.append(("auto", "cuda"))
    for backend, device in choices:
        for precision in PRECISIONS:
            options = EngineOptions(
                device=device,
                backend=backend,  # type: ignore[arg-type]
                precision=precision,
                threads=threads,
                batch_sizes=(1,),
                cache_dir=folder,
            )
            engine = open_engine(spec, options)
            known = dict(engine.describe())
            contenders[f"{known['backend']} {precision}"] = (of(engine), known)
    if find_spec("openvino") is not None and find_spec("nncf") is not None:
        from app.engine.openvino_cpu import OpenVinoEngine

        # Without the gate: how fast it is does not depend on whether its masks would be taken.
        engine = OpenVinoEngine(
            spec,
            precision="int8",
            threads=threads,
            cache_dir=folder,
            sample=np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8),
        )
        contenders["openvino int8"] = (of(engine), dict(engine.describe()))
    return contenders


def eager(spec: ModelSpec) -> Run:
    """What a plain server does: NCHW float32 through the module, sigmoid, compare, pack."""
    net = load_net(spec)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)

    def run(pixels: Pixels) -> Any:
        x = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            p = net(torch.from_numpy(np.ascontiguousarray(x))).sigmoid()
        return np.packbits(p.numpy() > spec.threshold, axis=-1)

    return run


def of(engine: Engine) -> Run:
    """An engine as one function of pixels."""
    thresholds = np.array([engine.spec.threshold], np.float32)

    def run(pixels: Pixels) -> Any:
        return engine.infer(pixels, thresholds).bits

    # Known to the engine before the clock runs, as in the server.
    run.prepare = engine.prepare  # type: ignore[attr-defined]
    return run


def race(contenders: dict[str, tuple[Run, Any]], side: int, rounds: int) -> list[dict[str, Any]]:
    """The fastest of `rounds` turns of each contender on one picture of side x side."""
    pixels = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run, _ in contenders.values():
        if hasattr(run, "prepare"):
            run.prepare(side, side, 1)
        run(pixels)
    for _ in range(rounds):
        for name, (run, _) in contenders.items():
            began = time.perf_counter()
            run(pixels)
            times[name].append(time.perf_counter() - began)
    base = min(times["torch eager float32"])
    return [
        {
            "side": side,
            "engine": name,
            "milliseconds": round(min(seen) * 1000, 2),
            "median": round(sorted(seen)[len(seen) // 2] * 1000, 2),
            "times_faster_than_eager": round(base / min(seen), 2),
        }
        for name, seen in times.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'side':>5}  {'engine':<22} {'best ms':>10} {'median ms':>10} {'x eager':>8}"]
    lines += [
        f"{row['side']:>5}  {row['engine']:<22} {row['milliseconds']:>10.1f} "
        f"{row['median']:>10.1f} {row['times_faster_than_eager']:>8.2f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
