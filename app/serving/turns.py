"""A device that several threads use, had in the order in which it was asked for.

A plain lock goes to whoever asks at the right moment: under load the batches would keep the opening
of a model out for ever, or its trials the batches.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """A fair lock. Not to be taken twice by one thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, and have it until the block ends."""
        with self._mutex:
            mine = None
            if self._taken:
                mine = threading.Lock()
                mine.acquire()
                self._waiting.append(mine)
            self._taken = True
        if mine is not None:
            mine.acquire()
        try:
            yield
        finally:
            with self._mutex:
                # Handed on without being free in between: nobody can come before the next.
                if self._waiting:
                    self._waiting.popleft().release()
                else:
                    self._taken = False
