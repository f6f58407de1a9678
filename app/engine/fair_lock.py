"""A lock that is given to whoever has waited longest."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """A context manager for threads; not reentrant.

    Of `threading.Lock` a thread that gives it up and wants it again at once mostly gets it, however
    long another has waited: batches would wait for every shape that is being prepared.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = 0
        self._turn = 0

    def __enter__(self) -> None:
        with self._changed:
            mine = self._last
            self._last += 1
            self._changed.wait_for(lambda: self._turn == mine)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()
