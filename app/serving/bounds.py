"""How much may be inside at once, and what is inside through all doors together. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be inside at once; the names are those of the settings."""

    max_requests: int
    max_body_bytes: int
    max_body_bytes_in_flight: int
    max_pixels_in_flight: int


@dataclass(frozen=True, slots=True)
class Inside:
    """What requests hold: how many they are, their bytes and pixels, how many did not reach the
    queue yet.
    """

    requests: int = 0
    bytes: int = 0
    pixels: int = 0
    coming: int = 0


class Held(Protocol):
    """What has the fields of `Inside`, as they are now."""

    @property
    def requests(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    @property
    def coming(self) -> int: ...


class Doors(Protocol):
    """The other doors of the same house, in other processes; the bounds hold for all together."""

    def others(self) -> Inside:
        """What came in through them."""
        ...

    def tell(self, inside: Held) -> None:
        """What came in through this one."""
        ...


class OneDoor:
    """There is no other."""

    def others(self) -> Inside:
        return _NOTHING

    def tell(self, inside: Held) -> None:
        pass


_NOTHING = Inside()
