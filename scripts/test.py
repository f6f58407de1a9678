"""All tests, each folder of `tests/` (a wing) in a process of its own, several at a time.

    python scripts/test.py [OPTION OF PYTEST ...]

A wing that breaks its process (torch, OpenVINO, ONNX Runtime and Ray all bring native code) is told
by name with the test that it broke in, and hides no other. The longest begin first. Exits 1 if
anything failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# By how long they take; the other folders follow. What lies in none makes one more wing, together
# with the fleet's, whose tests are nearly all for `make fleet`: a wing without tests is a failure.
LONGEST = ("journeys", "engine", "fronts", "training", "cluster", "bench")
# The longest takes a fifth of this on two slow cores.
WALL_S = 3600
# Wings share the cores. Threads of OpenMP (torch's) that wait for each other by spinning take them
# from the other wing: one thread each, and where a test asks for more, they wait asleep.
ONE_OF_MANY = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def wings() -> list[list[str]]:
    """Paths for pytest, every test in just one of them."""
    tests = ROOT / "tests"
    folders = {p.name for p in tests.iterdir() if p.is_dir() and any(p.glob("test_*.py"))}
    names = [*LONGEST, *sorted(folders - {*LONGEST, "fleet"})]
    rest = ["tests/fleet", *sorted(f"tests/{p.name}" for p in tests.glob("test_*.py"))]
    return [*([f"tests/{name}"] for name in names), rest]


def run(paths: list[str], options: list[str]) -> bool:
    """Run a wing and print how it went; whether all is well."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-v", *options, *paths],
            cwd=ROOT,
            env={**ONE_OF_MANY, **os.environ},
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(WALL_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        told.seek(0)
        lines = told.read().splitlines()
    name = paths[0] if len(paths) == 1 else f"{len(paths)} others"
    print(f"-- {name}: {time.monotonic() - begun:.0f} s", flush=True)
    print("\n".join(shown(lines, code)), flush=True)
    return code == 0


def shown(lines: list[str], code: int) -> list[str]:
    """Of a wing that is well its last line; of a broken one where it broke; else all failures."""
    if code == 0:
        return lines[-1:]
    if code < 0:
        return [*lines[-40:], f"-- broke: {signal.Signals(-code).name} ({code})"]
    begin = next(
        (i for i, line in enumerate(lines) if " FAILURES " in line or " ERRORS " in line), 0
    )
    return lines[begin:]


def main() -> int:
    """0 if every wing is well."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # One more than cores: tests wait for servers to start and for clients to be late.
    with ThreadPoolExecutor((cores or 1) + 1) as pool:
        well = list(pool.map(lambda paths: run(paths, sys.argv[1:]), wings()))
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
