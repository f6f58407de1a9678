"""What a running server can do, found out from outside: how fast, how late, and at which load.

First more and more clients, each waiting for its answer, until more clients give no more pictures a
second. Then requests that come when they come, at shares of that rate, each with the deadline. The
figure for planning is the highest rate at which 99 of 100 pictures were answered in time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from app.bench.load import Load, drive
from app.bench.messages import Target
from app.bench.shots import Run
from app.errors import Unavailable

SHARES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
# More clients that give less than this much more have not helped.
_WORTH = 1.05
# Share of pictures that must be answered in time for a rate to count as carried.
IN_TIME = 0.99


@dataclass(frozen=True, slots=True)
class Step:
    """One load: `clients` in a closed loop, or `offered` requests a second in an open one."""

    run: Run
    clients: int | None = None
    offered: float | None = None

    def in_time(self, within_s: float) -> float:
        """Share of the pictures that were answered in time."""
        due = sum(shot.kind == "picture" for shot in self.run.shots)
        return self.run.goodput(within_s) * self.run.seconds / max(1, due)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    within_s: float
    closed: tuple[Step, ...]
    opened: tuple[Step, ...]

    @property
    def knee(self) -> Step:
        """The fewest clients that got nearly the most pictures a second."""
        best = max(step.run.per_second for step in self.closed)
        return next(step for step in self.closed if step.run.per_second * _WORTH >= best)

    @property
    def carried(self) -> float:
        """Pictures a second at the highest load that was carried, as were all below it; 0: none.

        Never more than what was offered, however many came by chance.
        """
        found = 0.0
        for step in sorted(self.opened, key=lambda step: step.offered or 0.0):
            if step.in_time(self.within_s) < IN_TIME:
                break
            found = min(step.offered or 0.0, step.run.goodput(self.within_s))
        return found

    def json(self) -> str:
        """The report for programs; rates in pictures a second."""
        return json.dumps(
            {
                "within_s": self.within_s,
                "knee_clients": self.knee.clients,
                "knee_per_second": round(self.knee.run.per_second, 3),
                "carried_per_second": round(self.carried, 3),
                "closed": [
                    {"clients": step.clients, **step.run.summary(within_s=self.within_s)}
                    for step in self.closed
                ],
                "open": [
                    {
                        "offered_per_second": round(step.offered or 0.0, 3),
                        "in_time": round(step.in_time(self.within_s), 4),
                        **step.run.summary(within_s=self.within_s),
                    }
                    for step in self.opened
                ],
            },
            indent=1,
        )

    def text(self) -> str:
        """The report for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "closed loop: each client sends its next picture when it has the last one's mask"
        yield f"{'clients':>9}{'pictures/s':>12}{'p50 ms':>10}{'p99 ms':>10}"
        for step in self.closed:
            latency = step.run.summary()["latency_ms"]
            yield (
                f"{step.clients:>9}{step.run.per_second:>12.2f}"
                f"{latency.get('p50', 0):>10.1f}{latency.get('p99', 0):>10.1f}"
            )
        stages = self.knee.run.stages_ms()
        if stages:
            parts = ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items())
            yield f"milliseconds by stage with {self.knee.clients} clients: {parts}"
        yield ""
        yield f"open loop: pictures come at random moments; in time is within {self.within_s:g} s"
        yield (
            f"{'offered/s':>9}{'in time/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}"
            f"{'in time':>9}{'refused':>9}{'late':>7}{'failed':>8}"
        )
        for step in self.opened:
            found = step.run.summary(within_s=self.within_s)
            latency, statuses = found["latency_ms"], found["statuses"]
            refused = len(step.run.refused)
            failed = sum(n for status, n in statuses.items() if status not in (200, 504)) - refused
            yield (
                f"{step.offered or 0:>9.2f}{found['goodput']:>12.2f}{latency.get('p50', 0):>10.1f}"
                f"{latency.get('p99', 0):>10.1f}{latency.get('p99.9', 0):>10.1f}"
                f"{step.in_time(self.within_s):>9.1%}{refused:>9}{statuses.get(504, 0):>7}"
                f"{failed:>8}"
            )
        yield ""
        yield (
            f"{self.knee.run.per_second:.2f} pictures/s with {self.knee.clients} clients "
            "(more clients give no more)"
        )
        if self.carried:
            yield (
                f"{self.carried:.2f} pictures/s within {self.within_s:g} s for {IN_TIME:.0%} of "
                "them: plan with this"
            )
        else:
            yield (
                f"at none of these loads were {IN_TIME:.0%} answered within {self.within_s:g} s: "
                "allow more time, or send smaller pictures"
            )


def examine(
    target: Target,
    requests: Sequence[bytes],
    *,
    within_s: float,
    seconds: float,
    most_clients: int = 64,
    shares: Sequence[float] = SHARES,
    say: Callable[[str], None] = lambda words: None,
) -> Report:
    """Load a server for about `seconds` a step. `requests` are whole requests, with the deadline
    in their headers; `say` hears of each step.

    Raises OSError where nobody listens, and Unavailable where no picture is answered at all.
    """
    load = Load(target, requests, patience_s=max(60.0, 4 * within_s))
    drive(partial(load.closed, clients=1, seconds=min(1.0, seconds)))
    closed: list[Step] = []
    clients = 1
    while clients <= most_clients:
        say(f"{clients} clients" if clients > 1 else "1 client")
        run = drive(partial(load.closed, clients=clients, seconds=seconds))
        closed.append(Step(run, clients=clients))
        if not run.answered:
            raise Unavailable(
                f"not one picture was answered; the statuses were {run.statuses()} "
                "(0: no answer at all)"
            )
        rates = [step.run.per_second for step in closed]
        if len(rates) > 2 and max(rates[-2:]) < _WORTH * max(rates[:-2]):
            break
        clients *= 2
    best = max(step.run.per_second for step in closed)
    opened: list[Step] = []
    for turn, share in enumerate(shares):
        say(f"{share * best:.2f} pictures/s offered")
        load.seed = turn
        run = drive(partial(load.opened, rate=share * best, seconds=seconds, warm_s=within_s))
        opened.append(Step(run, offered=share * best))
    return Report(within_s, tuple(closed), tuple(opened))
