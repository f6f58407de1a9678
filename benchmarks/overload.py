"""More than the server can do: what is served, how late, and how soon the rest hears of it.

    python -m benchmarks.overload --json results.json
    python -m benchmarks.overload --real --within 20 --seconds 60 --loads 0.5 0.9 1.5 3

First the capacity, by a closed loop with as many clients as batches want; then, at multiples of it,
requests at random moments (Poisson), each with the deadline `--within` in its headers. Latency
counts from the moment at which a request was due. The device is simulated, so that it and not
the processor is the limit; `--real` takes the shipped model. The last row is the same load with
damaged pictures and with clients that leave.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from app.bench.load import Load, drive
from app.bench.messages import Target, message
from app.bench.shots import Run
from benchmarks import reports
from benchmarks.pictures import jpeg
from benchmarks.processes import ServerProcess, serving


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9, 1.1, 1.5, 3.0])
    parser.add_argument("--pictures-per-s", type=float, default=60.0, help="of the device")
    parser.add_argument("--largest-batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--within", type=float, default=0.5, help="deadline in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--real", action="store_true", help="the shipped model instead")
    parser.add_argument("--clients", type=int, default=24, help="of the closed loop")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with started(asked) as server:
        rows = measured(server, asked)
    print(reports.table(rows))
    reports.write(asked.json, rows)


@contextlib.contextmanager
def started(asked: argparse.Namespace) -> Iterator[ServerProcess]:
    """The server under load."""
    if asked.real:
        arguments = ["app", "serve", "--model", "buildings"]
    else:
        arguments = ["benchmarks.servers", "simulated", "--side", str(asked.side)]
        arguments += ["--pictures-per-s", str(asked.pictures_per_s)]
        arguments += ["--largest-batch", str(asked.largest_batch)]
    with serving(*arguments) as server:
        yield server


def measured(server: ServerProcess, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each load, the closed loop's first."""
    picture = jpeg(asked.side)
    target = Target.of(server.url)
    plain = Load(target, [message(target, picture)])
    # Twice: the first teaches the server what its device costs.
    for seconds in (asked.seconds / 4, asked.seconds):
        run = drive(partial(plain.closed, clients=asked.clients, seconds=seconds))
    capacity = run.per_second
    rows = [row("closed", run, asked.within, capacity)]
    hurried = {"x-request-timeout-ms": str(round(1000 * asked.within))}
    requests = [message(target, picture, headers=hurried)]
    cut = [message(target, picture[: len(picture) // 2], headers=hurried)]
    for load in [*asked.loads, asked.loads[-1]]:
        adverse = len(rows) == len(asked.loads) + 1
        sender = Load(
            target,
            requests,
            damaged=cut,
            damaged_share=0.01 if adverse else 0.0,
            leaver_share=0.05 if adverse else 0.0,
            patience_s=4 * asked.within + 5,
            seed=len(rows),
        )
        run = drive(
            partial(
                sender.opened, rate=load * capacity, seconds=asked.seconds, warm_s=2 * asked.within
            )
        )
        name = f"{load:g} x" + (", adverse" if adverse else "")
        rows.append(row(name, run, asked.within, capacity))
    return rows


def row(name: str, run: Run, within: float, capacity: float) -> dict[str, Any]:
    """The figures of one load."""
    found = run.summary(within_s=within)
    latency, refusal = found["latency_ms"], found.get("refusal_ms", {})
    return {
        "load": name,
        "offered_per_s": round(len(run.shots) / run.seconds, 1),
        "goodput_per_s": found["goodput"],
        "of_capacity": round(found["goodput"] / capacity, 3),
        "p50_ms": latency.get("p50"),
        "p99_ms": latency.get("p99"),
        "p99.9_ms": latency.get("p99.9"),
        "refused": len(run.refused),
        "refusal_p50_ms": refusal.get("p50"),
        "refusal_p99_ms": refusal.get("p99"),
        "retry_after_s": found.get("retry_after_s"),
        "late_504": found["statuses"].get(504, 0),
        "lost": found["statuses"].get(0, 0),
        "client_cpu_ms": found["client_cpu_ms_per_request"],
    }


if __name__ == "__main__":
    main()
