"""One kept-alive connection that sends prepared bytes and reads the answer's few facts.

No HTTP client library: what is measured is the server, so a request may cost the client next to
nothing. The parser is llhttp's, in C.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

from app.bench.shots import LOST, Shot


class Connection(asyncio.Protocol):
    """Answers one request at a time; `ended` hears of each shot, `idle` when another may come."""

    def __init__(
        self, *, ended: Callable[[Shot], None], idle: Callable[[Connection], None]
    ) -> None:
        self._ended = ended
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._shot: Shot | None = None
        self._last = False

    @property
    def open(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, shot: Shot, request: bytes, *, last: bool = False) -> None:
        """Send `request` for `shot`; the connection is idle. `last`: and nothing after it."""
        assert self._transport is not None
        self._shot, self._last = shot, last
        shot.sent = time.perf_counter()
        self._transport.write(request)

    def leave(self) -> None:
        """Close, without waiting for an answer that is still to come."""
        shot, self._shot = self._shot, None
        if shot is not None:
            shot.ended = time.perf_counter()
            self._ended(shot)
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports keep the interface without bearing its name.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        shot, self._shot = self._shot, None
        if shot is not None:
            shot.status, shot.ended = LOST, time.perf_counter()
            self._ended(shot)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._shot is None:
            return
        if len(name) == 13 and name.lower() == b"server-timing":
            self._shot.stages = value
        elif len(name) == 11 and name.lower() == b"retry-after":
            self._shot.retry_after = value

    def on_body(self, body: bytes) -> None:
        if self._shot is not None:
            self._shot.size_bytes += len(body)

    def on_message_complete(self) -> None:
        shot, self._shot = self._shot, None
        if shot is None:
            return
        shot.status, shot.ended = self._parser.get_status_code(), time.perf_counter()
        # Free first: who hears of the end may want to send the next request at once.
        if self._parser.should_keep_alive() and not self._last:
            self._idle(self)
        elif self._transport is not None:
            self._transport.close()
        self._ended(shot)
