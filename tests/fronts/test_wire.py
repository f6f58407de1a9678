"""What processes say to each other: everything comes through, and nonsense is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import (
    DeadlineExceeded,
    DeviceOutOfMemory,
    InferenceFailed,
    ModelNeeded,
    NotReady,
    TernausError,
)
from app.fronts import wire
from app.fronts.link import Link

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
times = st.floats(allow_nan=False)
RECORDS: dict[type, st.SearchStrategy[Any]] = {
    wire.Submit: st.builds(
        wire.Submit, u64, u64, u64, times, times, u32, u32, u32, i32, times, st.booleans()
    ),
    wire.Forget: st.builds(wire.Forget, u64),
    wire.Expect: st.builds(wire.Expect, u32, u32, u32, i32),
    wire.Prepare: st.builds(wire.Prepare, u32, u32, u32, u32),
    wire.Done: st.builds(wire.Done, u64, times, times, times, times, u32),
    wire.Dropped: st.builds(wire.Dropped, u64),
}


def test_every_record_is_tried() -> None:
    assert set(RECORDS) == set(get_args(wire.Record))


@settings(deadline=None)
@given(st.lists(st.one_of(*RECORDS.values()), min_size=1, max_size=50))
def test_records_come_through(records: list[wire.Record]) -> None:
    (packet,) = wire.packets(map(wire.record, records))
    found = wire.read(memoryview(packet))
    assert found == records
    assert [type(record) for record in found] == [type(record) for record in records]


def test_many_records_are_few_packets_that_fit() -> None:
    records = [wire.Dropped(tag) for tag in range(100_000)]
    packets = list(wire.packets(map(wire.record, records)))
    assert max(map(len, packets)) <= wire.MOST
    assert len(packets) <= -(-9 * 100_000 // (wire.MOST - 9)) + 1
    found: list[wire.Record] = []
    for packet in packets:
        part = wire.read(memoryview(packet))
        assert isinstance(part, list)
        found += part
    assert found == records


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_nonsense_is_a_value_error(data: bytes) -> None:
    for packet in (data, b"R" + data, b"M" + data):
        with contextlib.suppress(ValueError):
            assert isinstance(wire.read(memoryview(packet)), list | dict)


def test_message_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        wire.message("model", words="x" * wire.MOST)


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceeded("too late", stage="queue"),
        InferenceFailed("no"),
        DeviceOutOfMemory("full"),
        NotReady("gone", retry_after_s=7.0),
        ModelNeeded("the last", limit="TERNAUS_DEFAULT_MODEL", limit_value="fake"),
    ],
)
def test_errors_come_through_as_themselves(error: TernausError) -> None:
    packet = wire.message("failed", **wire.error_values(error))
    found = wire.read(memoryview(packet))
    assert isinstance(found, dict)
    again = wire.error_of(found)
    assert type(again) is type(error)
    assert (again.detail, again.members()) == (error.detail, error.members())


class End:
    """What one end of a link heard."""

    def __init__(self, line: socket.socket) -> None:
        self.records: list[wire.Record] = []
        self.messages: list[tuple[dict[str, Any], list[int]]] = []
        self.gone = asyncio.Event()
        self.heard = asyncio.Event()
        self.link = Link(
            line,
            on_record=self.records.append,
            on_message=lambda message, fds: self.messages.append((message, fds)),
            on_closed=self.gone.set,
            after=self.heard.set,
        )

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.records) + len(self.messages) < count:
                self.heard.clear()
                await self.heard.wait()


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_link_never_waits_and_loses_nothing() -> None:
    """The other end does not read at all at first: far more than its buffer holds is posted."""

    async def scenario() -> None:
        left, right = pair()
        here = End(left)
        count = 400_000
        for tag in range(count):
            here.link.post(wire.Dropped(tag))
        await asyncio.sleep(0)
        here.link.say("after")
        there = End(right)
        await there.until(count + 1)
        assert [record[0] for record in there.records] == list(range(count))
        assert there.messages[0][0] == {"kind": "after"}
        there.link.close()
        async with asyncio.timeout(30):
            await here.gone.wait()

    asyncio.run(scenario())


def test_records_of_many_threads_all_arrive() -> None:
    async def scenario() -> None:
        left, right = pair()
        here, there = End(left), End(right)

        def post(start: int) -> None:
            for tag in range(start, start + 2000):
                here.link.post_from_thread(wire.Dropped(tag))

        threads = [threading.Thread(target=post, args=(n * 2000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        await there.until(8000)
        assert sorted(record[0] for record in there.records) == list(range(8000))
        for thread in threads:
            thread.join()
        here.link.close()
        there.link.close()
        here.link.post_from_thread(wire.Dropped(1))

    asyncio.run(scenario())


def test_descriptors_travel_with_their_message() -> None:
    async def scenario() -> None:
        left, right = pair()
        here, there = End(left), End(right)
        reading, writing = os.pipe()
        here.link.say("pipe", writing)
        os.close(writing)
        await there.until(1)
        ((message, fds),) = there.messages
        assert message == {"kind": "pipe"}
        os.write(fds[0], b"through")
        assert os.read(reading, 10) == b"through"
        for fd in (reading, *fds):
            os.close(fd)
        here.link.close()
        there.link.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("packet", [b"X", b"R\xff", b"R\x00cut", b"Mnot json", b"M[]", b"M{}"])
def test_end_that_talks_nonsense_is_cut_off(packet: bytes) -> None:
    async def scenario() -> None:
        left, right = pair()
        here = End(left)
        right.send(packet)
        async with asyncio.timeout(30):
            await here.gone.wait()
        assert here.link.closed
        right.close()

    asyncio.run(scenario())
