"""Slots: where a tile lies in shared memory on its way to the engine, and its result on the way
back.

A front end owns its arena: it alone gives out slots and takes them back, so a front end that dies
takes its arena along, and an engine that dies leaves every slot to its owner. Free slots are the
back-pressure: who finds none waits in line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import DeviceOutOfMemory
from app.fronts.extents import Extents
from app.fronts.memory import Memory
from app.types import Inference, ModelSpec, Pixels

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Form:
    """What lies in the slot of one tile: its pixels first, then its result over them.

    The result is written when nobody reads the pixels any more: packed bits or labels, then
    probabilities, as `app.types.Inference` describes them for a batch of one.
    """

    height: int
    width: int
    channels: int
    exclusive: bool
    probability: bool

    @classmethod
    def of(cls, spec: ModelSpec, height: int, width: int, *, probability: bool) -> Form:
        return cls(height, width, spec.channels, spec.task == "multiclass", probability)

    @property
    def _plane(self) -> tuple[int, ...]:
        if self.exclusive:
            return (1, self.height, self.width)
        return (1, self.channels, self.height, -(-self.width // 8))

    @property
    def _grey(self) -> tuple[int, ...]:
        return (1, self.channels, self.height, self.width) if self.probability else (0,)

    @property
    def size(self) -> int:
        """Bytes of the slot."""
        result = _count(self._plane) + _count(self._grey)
        return max(3 * self.height * self.width, result)

    def pixels(self, memory: memoryview, offset: int) -> Pixels:
        """The pixels in the slot, (H, W, 3) uint8: a view."""
        return _array(memory, offset, (self.height, self.width, 3))

    def write(self, memory: memoryview, offset: int, result: Inference) -> None:
        """Put an inference of one into the slot."""
        plane = result.labels if self.exclusive else result.bits
        assert plane is not None
        _array(memory, offset, self._plane)[...] = plane
        if self.probability:
            assert result.probability is not None
            _array(memory, offset + _count(self._plane), self._grey)[...] = result.probability

    def read(self, memory: memoryview, offset: int) -> Inference:
        """Take the inference out of the slot: copies, so that the slot may be given back."""
        plane = _array(memory, offset, self._plane).copy()
        grey = None
        if self.probability:
            grey = _array(memory, offset + _count(self._plane), self._grey).copy()
        return Inference(
            bits=None if self.exclusive else plane,
            labels=plane if self.exclusive else None,
            probability=grey,
            finite=np.ones(1, np.bool_),
        )


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _array(memory: memoryview, offset: int, shape: tuple[int, ...]) -> Bytes:
    return np.ndarray(shape, np.uint8, memory, offset)


class Arena:
    """The slots of one front end. Lives on its event loop."""

    def __init__(self, size: int) -> None:
        self.memory = Memory.new("ternaus-slots", size)
        self._extents = Extents(size)
        self._line: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def used(self) -> int:
        """Bytes of slots in use."""
        return self._extents.used

    async def take(self, size: int) -> int:
        """The offset of a slot; waits in line while none is free.

        Raises DeviceOutOfMemory for a slot that could never be had: a smaller tile might.
        """
        if size > self._extents.size:
            raise DeviceOutOfMemory(
                f"a tile of {size:,} bytes is larger than the memory between front end and "
                f"engine, {self._extents.size:,} (TERNAUS_SLOT_BYTES)",
                limit="TERNAUS_SLOT_BYTES",
                limit_value=self._extents.size,
            )
        offset = None if self._line else self._extents.take(size)
        if offset is not None:
            return offset
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append((size, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give(future.result())
            else:
                future.cancel()
                self._serve()
            raise

    def give(self, offset: int) -> None:
        """A slot is free; who waits first is served first."""
        self._extents.give(offset)
        self._serve()

    def _serve(self) -> None:
        while self._line:
            size, future = self._line[0]
            if not future.done():
                offset = self._extents.take(size)
                if offset is None:
                    return
                future.set_result(offset)
            self._line.popleft()

    def refuse(self, error: Callable[[], BaseException]) -> None:
        """Nobody need wait any longer: everyone in line gets an error."""
        line, self._line = self._line, deque()
        for _, future in line:
            if not future.done():
                future.set_exception(error())
