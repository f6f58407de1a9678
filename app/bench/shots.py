"""What became of each request, and the figures of many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["picture", "damaged", "leaver"]

# Status of a request that got no answer: the connection broke, or the patience ran out.
LOST = 0


@dataclass(slots=True, eq=False)
class Shot:
    """One request. Moments are seconds of one clock; `due` is when it should have been sent."""

    due: float
    kind: Kind = "picture"
    sent: float = 0.0
    ended: float = 0.0
    status: int = LOST
    size_bytes: int = 0
    retry_after: bytes = b""
    stages: bytes = b""

    @property
    def seconds(self) -> float:
        """From the moment it was due, so that our own lateness is never hidden."""
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class Run:
    """All requests of one stretch of load, whose clock ran from `begun` for `seconds`."""

    shots: tuple[Shot, ...]
    begun: float
    seconds: float
    client_cpu_s: float
    requests: int

    @property
    def answered(self) -> list[Shot]:
        """Whole pictures that got their mask."""
        return [shot for shot in self.shots if shot.kind == "picture" and shot.status == 200]

    @property
    def refused(self) -> list[Shot]:
        """Turned away for load, before or after the body was read."""
        return [shot for shot in self.shots if shot.status in (429, 503)]

    @property
    def per_second(self) -> float:
        """Masks a second, counted by when they came."""
        ends = (shot.ended for shot in self.answered)
        return sum(end <= self.begun + self.seconds for end in ends) / self.seconds

    def goodput(self, within_s: float) -> float:
        """Masks a second that came within that time of the moment their request was due."""
        return sum(shot.seconds <= within_s for shot in self.answered) / self.seconds

    def statuses(self) -> dict[int, int]:
        """How many whole pictures ended with each status; 0: no answer."""
        counted = Counter(shot.status for shot in self.shots if shot.kind == "picture")
        return dict(sorted(counted.items()))

    def stages_ms(self) -> dict[str, float]:
        """Mean milliseconds of each stage that the server told of in `Server-Timing`."""
        told = [stages_of(shot.stages) for shot in self.answered if shot.stages]
        names = list(told[0]) if told else []
        return {name: sum(t.get(name, 0.0) for t in told) / len(told) for name in names}

    def summary(self, *, within_s: float | None = None) -> dict[str, Any]:
        """The figures, for JSON. Milliseconds unless a name says otherwise."""
        took = sorted(shot.seconds for shot in self.answered)
        turned = sorted(shot.ended - shot.sent for shot in self.refused)
        found: dict[str, Any] = {
            "seconds": round(self.seconds, 2),
            "requests": len(self.shots),
            "statuses": self.statuses(),
            "per_second": round(self.per_second, 3),
            "latency_ms": percentiles_ms(took),
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms().items()},
            "client_cpu_ms_per_request": round(1000 * self.client_cpu_s / max(1, self.requests), 4),
        }
        if within_s is not None:
            found["within_s"] = within_s
            found["goodput"] = round(self.goodput(within_s), 3)
        if turned:
            waits = [int(shot.retry_after) for shot in self.refused if shot.retry_after.isdigit()]
            found["refusal_ms"] = percentiles_ms(turned)
            found["retry_after_s"] = [min(waits), max(waits)] if waits else None
            found["refusals_without_retry_after"] = len(self.refused) - len(waits)
        return found


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles_ms(ordered: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, p99.9 and the largest, in milliseconds; empty of none."""
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: round(1000 * percentile(ordered, share), 2) for name, share in shares.items()}


def stages_of(header: bytes) -> dict[str, float]:
    """Milliseconds by name out of a `Server-Timing` value; what has no duration is left out."""
    found = {}
    for part in header.decode("latin-1").split(","):
        name, _, rest = part.strip().partition(";dur=")
        try:
            found[name] = float(rest)
        except ValueError:
            continue
    return found


def joined(runs: Iterable[Run]) -> Run:
    """Several stretches as one."""
    parts = list(runs)
    return Run(
        shots=tuple(shot for run in parts for shot in run.shots),
        begun=parts[0].begun,
        seconds=sum(run.seconds for run in parts),
        client_cpu_s=sum(run.client_cpu_s for run in parts),
        requests=sum(run.requests for run in parts),
    )
