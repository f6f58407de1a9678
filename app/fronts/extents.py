"""Which parts of a piece of memory are free: extents of any length, first fit, merged when given
back. Pure.
"""

from __future__ import annotations

from bisect import bisect_left

# Whole pages: what one tile's owner writes shares no cache line with a neighbour.
GRAIN = 4096


class Extents:
    """Free and taken extents of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size // GRAIN * GRAIN
        self._free: list[tuple[int, int]] = [(0, self.size)] if self.size else []
        self._taken: dict[int, int] = {}
        self.used = 0

    def take(self, size: int) -> int | None:
        """The offset of `size` bytes, a multiple of the grain; None while there is no such hole."""
        need = max(GRAIN, -(-size // GRAIN) * GRAIN)
        for index, (offset, length) in enumerate(self._free):
            if length >= need:
                if length == need:
                    del self._free[index]
                else:
                    self._free[index] = (offset + need, length - need)
                self._taken[offset] = need
                self.used += need
                return offset
        return None

    def give(self, offset: int) -> None:
        """Take an extent back. Raises KeyError for one that is not taken."""
        length = self._taken.pop(offset)
        self.used -= length
        at = bisect_left(self._free, (offset, 0))
        if at < len(self._free) and self._free[at][0] == offset + length:
            length += self._free.pop(at)[1]
        if at > 0 and sum(self._free[at - 1]) == offset:
            before = self._free.pop(at - 1)
            offset, length = before[0], before[1] + length
            at -= 1
        self._free.insert(at, (offset, length))
