"""What a batch costs, learnt from the last launches of its lane.

Per lane the run time is taken as T(n) = a n + b, fitted by least squares to the last 50 launches. A
lane that never ran is judged by its pixels and the rate of the others. The model orders, admits,
computes Retry-After and keeps a device from what it could not finish in time; what runs is never
cancelled by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from app.engine.recent import Recent

_WINDOW = 50
# Lanes that are remembered; pictures come in any number of shapes.
_LANES = 1024


@dataclass(slots=True, eq=False)
class _Launches:
    """The last launches of a lane as (tiles, seconds), their sums, and the (a, b) that fit them."""

    last: deque[tuple[int, float]] = field(default_factory=deque)
    tiles: int = 0
    squares: int = 0
    seconds: float = 0.0
    products: float = 0.0
    fit: tuple[float, float] = (0.0, 0.0)

    def add(self, tiles: int, seconds: float) -> None:
        """One more; the oldest leaves. Sums are kept, as this happens between two launches."""
        self.last.append((tiles, seconds))
        self._count(tiles, seconds, 1)
        if len(self.last) > _WINDOW:
            self._count(*self.last.popleft(), -1)
        self.fit = self._fitted()

    def _count(self, tiles: int, seconds: float, sign: int) -> None:
        self.tiles += sign * tiles
        self.squares += sign * tiles * tiles
        self.seconds += sign * seconds
        self.products += sign * tiles * seconds

    def _fitted(self) -> tuple[float, float]:
        """Least squares (a, b), both kept at or above zero."""
        count = len(self.last)
        # Whole numbers, so that launches of one size are seen to be just that.
        spread = count * self.squares - self.tiles * self.tiles
        proportional = max(0.0, self.seconds / self.tiles), 0.0
        if spread == 0:
            return proportional
        a = (count * self.products - self.tiles * self.seconds) / spread
        b = (self.seconds - a * self.tiles) / count
        if a <= 0.0:
            return 0.0, max(0.0, self.seconds / count)
        return proportional if b <= 0.0 else (a, b)


class Costs:
    """Predicted seconds of a launch."""

    def __init__(self) -> None:
        self._launches: Recent[Hashable, _Launches] = Recent(_LANES)
        self._seconds_per_pixel = 0.0

    def observe(self, lane: Hashable, *, items: int, pixels: int, seconds: float) -> None:
        """A launch of `items` tiles of `pixels` each took `seconds`."""
        launches = self._launches.get(lane)
        if launches is None:
            launches = _Launches()
            self._launches.put(lane, launches)
        launches.add(items, seconds)
        rate = seconds / (items * pixels)
        known = self._seconds_per_pixel
        self._seconds_per_pixel = rate if known == 0.0 else known + 0.2 * (rate - known)

    @property
    def seconds_per_pixel(self) -> float:
        """The mean of the last launches of all lanes; 0.0 if nothing ran yet."""
        return self._seconds_per_pixel

    def fit(self, lane: Hashable) -> tuple[float, float] | None:
        """Seconds (per item, per launch) of a lane; None if it never ran."""
        launches = self._launches.get(lane)
        return None if launches is None else launches.fit

    def forget(self, unwanted: Callable[[Hashable], bool]) -> None:
        """Drop every lane of which `unwanted` says so; the rate by pixels stays."""
        self._launches.drop(unwanted)

    def predict(self, lane: Hashable, *, items: int, pixels: int, largest: int) -> float:
        """Seconds for `items` tiles launched in batches of at most `largest`; 0.0 if nothing ran
        yet.
        """
        if items <= 0:
            return 0.0
        launches = self._launches.get(lane)
        if launches is None:
            return self._seconds_per_pixel * pixels * items
        per_item, per_launch = launches.fit
        return per_item * items + per_launch * -(-items // largest)
