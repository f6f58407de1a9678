"""How long until a server serves, and until a running one serves another version.

    python -m benchmarks.starts --model pets --rounds 3 --json results.json

Starts, from the command to `/health/ready` saying yes: with an empty cache; with the net's template
and what was measured of the machine, as after the first model of that net; with the model converted
too. Then `POST /models/NAME/load` of a version whose weights the cache has never seen, without
traffic. Medians of the rounds, in seconds; memory (RSS) of each when it was ready.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from app.store.store import ModelStore
from benchmarks import reports
from benchmarks.processes import ROOT, ServerProcess, serving

KEY = "benchmark"


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="pets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        store = ModelStore(Path(work) / "store")
        origin = ModelStore(ROOT / "model_store")
        label = f"{asked.model}@{origin.latest(asked.model)}"
        manifest, files = origin.manifest(label), dict(origin.fetch(label))
        store.publish(asked.model, manifest.draft(), files)
        for number in range(asked.rounds):
            cache = Path(work) / f"cache-{number}"
            for kind in ("empty cache", "template", "converted"):
                if kind == "template":
                    for folder in (cache / "engines").glob("openvino-*"):
                        shutil.rmtree(folder)
                took, used = start(Path(work) / "store", asked.model, cache)
                seconds.setdefault(kind, []).append(took)
                memory.setdefault(kind, []).append(used)
            weights = nudged(files["weights.safetensors"], Path(work) / f"{number}.safetensors")
            version = store.publish(
                asked.model, manifest.draft(), {**files, "weights.safetensors": weights}
            )
            took, used = change(Path(work) / "store", asked.model, version, cache)
            seconds.setdefault("load of a new version", []).append(took)
            memory.setdefault("load of a new version", []).append(used)
    rows = [
        {
            "what": kind,
            "seconds": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "MB": statistics.median(memory[kind]),
        }
        for kind, values in seconds.items()
    ]
    print(reports.table(rows))
    reports.write(asked.json, rows)


def nudged(weights: Path, target: Path) -> Path:
    """The same model with other numbers: its logits are a thousandth higher."""
    tensors = load_file(weights)
    step = np.array(1e-3 * np.random.default_rng().uniform(1, 2), tensors["final.bias"].dtype)
    tensors["final.bias"] = tensors["final.bias"] + step
    save_file(tensors, target)
    return target


def server(store: Path, label: str, cache: Path) -> Any:
    """`ternaus serve` of one model, ready when the block begins."""
    command = ("app", "serve", "--store", str(store), "--model", label)
    return serving(*command, TERNAUS_CACHE_DIR=str(cache), TERNAUS_ADMIN_KEY=KEY)


def start(store: Path, name: str, cache: Path) -> tuple[float, float]:
    """Seconds from the command to ready, and MB."""
    begun = time.perf_counter()
    with server(store, f"{name}@1", cache) as process:
        return time.perf_counter() - begun, megabytes(process)


def change(store: Path, name: str, version: int, cache: Path) -> tuple[float, float]:
    """Seconds that the load of `version` takes where version 1 is served, and MB after it."""
    with (
        server(store, f"{name}@1", cache) as process,
        httpx.Client(base_url=process.url, trust_env=False, timeout=300) as client,
    ):
        begun = time.perf_counter()
        answer = client.post(
            f"/models/{name}/load?version={version}", headers={"authorization": f"Bearer {KEY}"}
        )
        took = time.perf_counter() - begun
        answer.raise_for_status()
        return took, megabytes(process)


def megabytes(process: ServerProcess) -> float:
    """Memory of all its processes (RSS)."""
    kilobytes = 0
    for pid in process.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes += int(status.partition("VmRSS:")[2].split()[0])
    return kilobytes / 1024


if __name__ == "__main__":
    main()
