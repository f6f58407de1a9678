"""What a batch costs, learnt from the last launches of its lane.

Per lane the run time is taken as T(n) = a n + b, fitted by least squares to the last 50 launches. A
lane that never ran is judged by its pixels and the rate of the others. The model orders, admits,
computes Retry-After and keeps a device from what it could not finish in time; what runs is never
cancelled by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from app.engine.recent import Recent

_WINDOW = 50
# Lanes that are remembered; pictures come in any number of shapes.
_LANES = 1024


class Costs:
    """Predicted seconds of a launch."""

    def __init__(self) -> None:
        self._launches: Recent[Hashable, deque[tuple[int, float]]] = Recent(_LANES)
        self._fits: Recent[Hashable, tuple[float, float]] = Recent(_LANES)
        self._seconds_per_pixel = 0.0

    def observe(self, lane: Hashable, *, items: int, pixels: int, seconds: float) -> None:
        """A launch of `items` tiles of `pixels` each took `seconds`."""
        launches = self._launches.get(lane) or deque(maxlen=_WINDOW)
        launches.append((items, seconds))
        self._launches.put(lane, launches)
        self._fits.put(lane, _fit(launches))
        rate = seconds / (items * pixels)
        known = self._seconds_per_pixel
        self._seconds_per_pixel = rate if known == 0.0 else known + 0.2 * (rate - known)

    @property
    def seconds_per_pixel(self) -> float:
        """The mean of the last launches of all lanes; 0.0 if nothing ran yet."""
        return self._seconds_per_pixel

    def fit(self, lane: Hashable) -> tuple[float, float] | None:
        """Seconds (per item, per launch) of a lane; None if it never ran."""
        return self._fits.get(lane)

    def forget(self, unwanted: Callable[[Hashable], bool]) -> None:
        """Drop every lane of which `unwanted` says so; the rate by pixels stays."""
        self._launches.drop(unwanted)
        self._fits.drop(unwanted)

    def predict(self, lane: Hashable, *, items: int, pixels: int, largest: int) -> float:
        """Seconds for `items` tiles launched in batches of at most `largest`; 0.0 if nothing ran
        yet.
        """
        if items <= 0:
            return 0.0
        fit = self._fits.get(lane)
        if fit is None:
            return self._seconds_per_pixel * pixels * items
        per_item, per_launch = fit
        return per_item * items + per_launch * -(-items // largest)


def _fit(launches: deque[tuple[int, float]]) -> tuple[float, float]:
    """Least squares (a, b), both kept at or above zero."""
    count = len(launches)
    mean_n = sum(n for n, _ in launches) / count
    mean_t = sum(t for _, t in launches) / count
    spread = sum((n - mean_n) ** 2 for n, _ in launches)
    if spread == 0.0:
        return mean_t / mean_n, 0.0
    a = sum((n - mean_n) * (t - mean_t) for n, t in launches) / spread
    b = mean_t - a * mean_n
    if a <= 0.0:
        return 0.0, mean_t
    if b <= 0.0:
        return mean_t / mean_n, 0.0
    return a, b
