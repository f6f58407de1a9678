"""A Unix socket on an event loop: packets in, packets out, never a wait.

What is posted in one turn of the loop leaves in one packet. Nothing here bounds what is posted:
every record stands for a slot, a request or a model, and those are bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from app.fronts import wire

log = logging.getLogger("ternaus.link")

# Packets read before the loop gets a turn for its other work.
_AT_ONCE = 16
_FDS = 4

OnRecord = Callable[[wire.Record], None]
OnMessage = Callable[[dict[str, Any], list[int]], None]


def _none(record: wire.Record) -> None:
    raise ValueError(f"unexpected {type(record).__name__}")


class Link:
    """One end. `on_closed` is called once when the other end is gone or talks nonsense."""

    def __init__(
        self,
        line: socket.socket,
        *,
        on_message: OnMessage,
        on_closed: Callable[[], None],
        on_record: OnRecord = _none,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_message` owns the descriptors it gets. `after` follows each burst of packets."""
        line.setblocking(False)
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._on_record, self._on_message = on_record, on_message
        self._on_closed, self._after = on_closed, after
        self._records: deque[bytes] = deque()
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._buffer = bytearray(wire.MOST)
        self._scheduled = False
        self._blocked = False
        self.closed = False
        self._loop.add_reader(line.fileno(), self._read)

    def post(self, record: wire.Record) -> None:
        """Send a record with the others of this turn."""
        self._records.append(wire.record(record))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def post_from_thread(self, record: wire.Record) -> None:
        """The same from any thread."""
        if self.closed:
            return
        self._records.append(wire.record(record))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self.flush)

    def say(self, kind: str, *fds: int, **values: Any) -> None:
        """Send a message, after the records so far. `fds` stay the caller's."""
        self._pack()
        self._out.append((wire.message(kind, **values), tuple(os.dup(fd) for fd in fds)))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        self._scheduled = False
        self._pack()
        while self._out and not self.closed:
            packet, fds = self._out[0]
            try:
                socket.send_fds(self._line, [packet], fds)
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._line.fileno(), self.flush)
                return
            except OSError:
                self._end()
                return
            self._out.popleft()
            _close(fds)
        if self._blocked and not self.closed:
            self._blocked = False
            self._loop.remove_writer(self._line.fileno())

    def _pack(self) -> None:
        if self._records:
            records = [self._records.popleft() for _ in range(len(self._records))]
            self._out.extend((packet, ()) for packet in wire.packets(records))

    def _read(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                try:
                    size, ancillary, flags, _ = self._line.recvmsg_into(
                        [self._buffer], socket.CMSG_SPACE(_FDS * 4), socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    break
                fds = _descriptors(ancillary)
                if size == 0 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    _close(fds)
                    self._end()
                    return
                self._take(memoryview(self._buffer)[:size], fds)
                if self.closed:
                    return
        except (OSError, ValueError, LookupError, TypeError) as exc:
            if not isinstance(exc, ConnectionError):
                log.error("a process spoke nonsense: %s", exc)
            self._end()
            return
        self._after()

    def _take(self, packet: memoryview, fds: list[int]) -> None:
        found = wire.read(packet)
        if isinstance(found, dict):
            self._on_message(found, fds)
            return
        for record in found:
            self._on_record(record)

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._on_closed()

    def close(self) -> None:
        """Close this end, without a call to `on_closed`. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._line.fileno())
        self._loop.remove_writer(self._line.fileno())
        self._line.close()
        for _, fds in self._out:
            _close(fds)
        self._out.clear()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _close(fds: list[int] | tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
