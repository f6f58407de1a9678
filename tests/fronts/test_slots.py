"""Shared memory: extents never overlap, slots hold what was put in, and who waits is served."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.errors import DeviceOutOfMemory, NotReady
from app.fronts.extents import GRAIN, Extents
from app.fronts.memory import Memory
from app.fronts.slots import Arena, Form
from app.types import Inference


class ExtentsMachine(RuleBasedStateMachine):
    """Any order of taking and giving back, against a plain map of who has which page."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[int | None] = [None] * 32
        self.extents = Extents(32 * GRAIN + 17)
        self.held: dict[int, int] = {}

    @rule(size=st.integers(1, 40 * GRAIN))
    def take(self, size: int) -> None:
        need = -(-size // GRAIN)
        offset = self.extents.take(size)
        if offset is None:
            gaps = "".join("." if page is None else "#" for page in self.pages).split("#")
            assert max(map(len, gaps)) < need
            return
        assert offset % GRAIN == 0
        first = offset // GRAIN
        assert all(page is None for page in self.pages[first : first + need])
        assert first + need <= len(self.pages)
        self.pages[first : first + need] = [offset] * need
        self.held[offset] = need

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.held)))
        need = self.held.pop(offset)
        self.extents.give(offset)
        self.pages[offset // GRAIN : offset // GRAIN + need] = [None] * need

    @invariant()
    def counted(self) -> None:
        assert self.extents.used == GRAIN * sum(page is not None for page in self.pages)


TestExtents = ExtentsMachine.TestCase
TestExtents.settings = settings(deadline=None)


def test_extent_given_twice_is_a_defect() -> None:
    extents = Extents(4 * GRAIN)
    offset = extents.take(1)
    assert offset is not None
    extents.give(offset)
    with pytest.raises(KeyError):
        extents.give(offset)


@settings(deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.integers(1, 9),
    exclusive=st.booleans(),
    probability=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_slot_gives_back_what_was_put_in(
    height: int, width: int, channels: int, exclusive: bool, probability: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, dtype=np.uint8)

    form = Form(height, width, channels, exclusive, probability)
    memory = memoryview(bytearray(some(form.size + 300).tobytes()))
    before = bytes(memory)
    pixels = some(height, width, 3)
    form.pixels(memory, 100)[...] = pixels
    assert (form.pixels(memory, 100) == pixels).all()
    result = Inference(
        bits=None if exclusive else some(1, channels, height, -(-width // 8)),
        labels=some(1, height, width) if exclusive else None,
        probability=some(1, channels, height, width) if probability else None,
        finite=np.ones(1, np.bool_),
    )
    form.write(memory, 100, result)
    found = form.read(memory, 100)
    memory[100 : 100 + form.size] = bytes(form.size)  # what was read is a copy
    for name in ("bits", "labels", "probability", "finite"):
        expected = getattr(result, name)
        if expected is None:
            assert getattr(found, name) is None
        else:
            assert (getattr(found, name) == expected).all()
    # The neighbours of the slot are untouched.
    assert bytes(memory[:100]) == before[:100]
    assert bytes(memory[100 + form.size :]) == before[100 + form.size :]


def test_who_waits_first_is_served_first() -> None:
    async def scenario() -> None:
        arena = Arena(4 * GRAIN)
        first = await arena.take(3 * GRAIN)
        large = asyncio.ensure_future(arena.take(2 * GRAIN))
        await asyncio.sleep(0)
        # There would be room for this one, but a stream of small tiles must not starve a large one.
        small = asyncio.ensure_future(arena.take(GRAIN))
        await asyncio.sleep(0)
        assert not small.done()
        arena.give(first)
        offsets = [await large, await small]
        assert len(set(offsets)) == 2
        for offset in offsets:
            arena.give(offset)
        assert arena.used == 0

    asyncio.run(scenario())


def test_who_leaves_the_line_holds_nobody_up() -> None:
    async def scenario() -> None:
        arena = Arena(2 * GRAIN)
        held = await arena.take(GRAIN)
        leaving = asyncio.ensure_future(arena.take(2 * GRAIN))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(arena.take(GRAIN))
        await asyncio.sleep(0)
        leaving.cancel()
        arena.give(await asyncio.wait_for(waiting, 10))
        # Left in the very moment in which the slot was given: it is not lost.
        late = asyncio.ensure_future(arena.take(2 * GRAIN))
        await asyncio.sleep(0)
        arena.give(held)
        late.cancel()
        await asyncio.wait((late,))
        assert arena.used == 0

    asyncio.run(scenario())


def test_slot_that_could_never_be_had_is_told_at_once() -> None:
    async def scenario() -> None:
        arena = Arena(4 * GRAIN)
        with pytest.raises(DeviceOutOfMemory, match="TERNAUS_SLOT_BYTES"):
            await arena.take(4 * GRAIN + 1)
        held = await arena.take(4 * GRAIN)
        waiting = asyncio.ensure_future(arena.take(1))
        await asyncio.sleep(0)
        arena.refuse(lambda: NotReady("the engine is gone"))
        with pytest.raises(NotReady):
            await waiting
        arena.give(held)

    asyncio.run(scenario())


def test_memory_is_the_same_in_another_process_and_cannot_shrink() -> None:
    memory = Memory.new("ternaus-test", 3 * GRAIN)
    code = (
        "import sys; from app.fronts.memory import Memory; "
        f"m = Memory(int(sys.argv[1]), {3 * GRAIN}); m.view[7] += 1"
    )
    memory.view[7] = 41
    subprocess.run([sys.executable, "-c", code, str(memory.fd)], check=True, pass_fds=[memory.fd])
    assert memory.view[7] == 42
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(memory.fd, GRAIN)
    with pytest.raises(OSError, match="expected"):
        Memory(memory.fd, 4 * GRAIN)
    memory.forget_fd()
