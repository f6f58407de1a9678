"""Time as an argument: the real clock, and the interface that a fake one honours in tests."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and waiting on a condition until a moment."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """Release `condition` (held by the caller) until notified or until `until`; None: no
        end.
        """
        ...


class RealClock:
    """`time.monotonic`."""

    # The function itself: it is asked some twenty times for each picture.
    now = staticmethod(time.monotonic)

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        condition.wait(None if until is None else max(0.0, until - time.monotonic()))
