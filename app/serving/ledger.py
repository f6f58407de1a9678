"""Numbers that outlive the process that counts, and that others may read while it does.

    ledger = Ledger(memory); place = ledger.place("key", 3); ledger.add(place, 1.0)

A ledger only grows: [used bytes, uint64] then entries of [key bytes, uint32][numbers,
uint32][key, UTF-8, padded to 8][float64 ...]. An entry never moves and `used` is raised last, so a
reader sees whole entries only; a number is eight aligned bytes, written at once. Who opens the
memory of a dead process goes on where it stopped: no total ever falls.
"""

from __future__ import annotations

import json
import logging
import math
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

log = logging.getLogger("ternaus.ledger")

SIZE = 2**20
_HEAD = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the numbers of one key are."""

    numbers: memoryview[float]
    start: int
    count: int


class Ledger:
    """One writing process, any number of readers. Methods may be called from any thread."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """`memory`: zeros, or what another ledger wrote; its length is a multiple of 8 bytes."""
        self._memory = memoryview(bytearray(SIZE)) if memory is None else memory
        self._numbers = self._memory.cast("d")
        self._used = self._memory[:8].cast("Q")
        self._lock = threading.Lock()
        if self._used[0] == 0:
            self._used[0] = 8
        self._places = {key: place for key, place in self._walk()}

    def place(self, key: str, count: int) -> Place:
        """The numbers of `key`, zeros if it is new.

        Where the memory is full they are counted for this process alone, and the log says so once.
        """
        with self._lock:
            found = self._places.get(key)
            if found is None:
                found = self._places[key] = self._append(key, count)
            return found

    def _append(self, key: str, count: int) -> Place:
        name = key.encode()
        padded = -(-len(name) // 8) * 8
        at = self._used[0]
        start = at + _HEAD.size + padded
        if start + 8 * count > len(self._memory):
            if not any(place.numbers is not self._numbers for place in self._places.values()):
                log.error("the memory for metrics is full; new series stay in one process")
            return Place(memoryview(bytearray(8 * count)).cast("d"), 0, count)
        self._memory[at + _HEAD.size : at + _HEAD.size + len(name)] = name
        _HEAD.pack_into(self._memory, at, len(name), count)
        self._used[0] = start + 8 * count
        return Place(self._numbers, start // 8, count)

    def add(self, place: Place, amount: float, *, at: int = 0) -> None:
        """Add to the number `at` of a place."""
        with self._lock:
            place.numbers[place.start + at] += amount

    def put(self, place: Place, value: float) -> None:
        """Set the first number of a place."""
        place.numbers[place.start] = value

    def observe(self, place: Place, bucket: int, value: float) -> None:
        """Count one in `bucket`, and add `value` to the last number, which is the sum."""
        with self._lock:
            place.numbers[place.start + bucket] += 1.0
            place.numbers[place.start + place.count - 1] += value

    def entries(self) -> Iterator[tuple[str, list[float]]]:
        """Every key with its numbers as they are now; of another process too."""
        known = dict(self._walk())
        known.update(self._places)
        for key, place in known.items():
            yield key, list(place.numbers[place.start : place.start + place.count])

    def forget_gauges(self) -> None:
        """The process is gone: what it counted stays true, what it was is not.

        Keys are those of `app.serving.series`: JSON lists that begin with the kind.
        """
        for key, place in self._walk():
            if json.loads(key)[0] == "gauge":
                self.put(place, -math.inf)

    def _walk(self) -> Iterator[tuple[str, Place]]:
        at, used = 8, self._used[0]
        while at < used:
            length, count = _HEAD.unpack_from(self._memory, at)
            name = bytes(self._memory[at + _HEAD.size : at + _HEAD.size + length]).decode()
            start = at + _HEAD.size + -(-length // 8) * 8
            yield name, Place(self._numbers, start // 8, count)
            at = start + 8 * count
