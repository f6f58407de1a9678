"""A bounded table that forgets what was used least recently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `bound` values by key. Not thread-safe: its owner's lock guards it."""

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"a bound of {bound} holds nothing")
        self.bound = bound
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, which counts as a use, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value; the least recently used leave."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self.bound:
            self._values.popitem(last=False)

    def drop(self, unwanted: Callable[[K], bool]) -> None:
        """Forget every key of which `unwanted` says so."""
        for key in [key for key in self._values if unwanted(key)]:
            del self._values[key]

    def clear(self) -> None:
        self._values.clear()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[K]:
        """Least recently used first."""
        return list(self._values)

    def items(self) -> list[tuple[K, V]]:
        """The same with their values; no use of them is counted."""
        return list(self._values.items())
