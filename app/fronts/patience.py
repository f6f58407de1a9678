"""When a process that keeps ending is started again, and when no more. Pure."""

from __future__ import annotations

from collections import deque

_FIRST_S = 0.5
_LONGEST_S = 30.0


class Patience:
    """The first death is cured at once, the next ones later and later; `deaths` within `window_s`
    end it.
    """

    def __init__(self, *, deaths: int, window_s: float) -> None:
        self._most = deaths
        self._window = window_s
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> float | None:
        """Seconds until the next start; None: there will be none."""
        while self._deaths and now - self._deaths[0] > self._window:
            self._deaths.popleft()
        self._deaths.append(now)
        count = len(self._deaths)
        if count > self._most:
            return None
        return 0.0 if count == 1 else min(_LONGEST_S, _FIRST_S * 2.0 ** (count - 2))
