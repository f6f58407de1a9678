"""Connections that cannot be held for nothing: uvicorn's parser of HTTP/1.1, with an end to every
wait and to everything that grows.

Headers are bounded in number, size and time; so is the time for a client to take its answer, or to
send the rest of a body that was answered early. Beyond a number of connections the one that has
been idle longest is closed, and where none is idle, new ones are answered 503. Probes are not, or
load would look like death.

This costs a request nothing but a few comparisons: clocks run only for heads that came in pieces,
for answers that the socket did not take at once, and for bodies that were refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.api.problems import problem
from app.api.reception import PROBES
from app.api.visits import CLIENT, NOSNIFF, request_id_of
from app.errors import (
    HeadersTooLarge,
    HeadersTooSlow,
    MalformedRequest,
    TernausError,
    TooManyConnections,
    UrlTooLong,
)

log = logging.getLogger("ternaus.access")

# After a refusal, how long what the client still sends is thrown away: closing at once would reset
# the connection, and the client might never see why.
_LINGER_S = 2.0
# Refused connections are answered, which takes a place too; beyond this factor they are not.
_HARD = 2
# Bytes of a body that go out with the head; of a larger one the copy would cost more.
_JOINED = 1 << 16
# Headers that say how an answer ends.
_ENDINGS = (b"connection", b"transfer-encoding")
# Controls in a header, but for tabs and for the ends of lines, which are counted.
_UNFIT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """What connections of one server may do; the names are those of the settings. `cut` hears why
    each one was cut off or refused.
    """

    max_connections: int = 1024
    max_url_bytes: int = 8192
    max_header_bytes: int = 32_768
    max_headers: int = 100
    header_timeout_s: float = 20.0
    body_timeout_s: float = 20.0
    send_timeout_s: float = 120.0
    cut: Callable[[str], None] = lambda reason: None
    # Whether there is a log line of each, as of a request.
    logged: bool = False
    # Connections between two requests, the one that has been idle longest first.
    idle: dict[Connection, None] = field(default_factory=dict)

    def __call__(self, **parts: Any) -> Connection:
        """A connection, as uvicorn asks for one."""
        return Connection(self, **parts)


class _Refused(Exception):
    """Stops the parser."""


class Cycle(RequestResponseCycle):
    """One request and its answer, which goes out in one piece where it is there in one.

    What ASGI sends as two messages uvicorn writes as two, and the kernel is called for each.
    """

    _start: Any = None

    async def send(self, message: Any) -> None:
        """See ASGI's HTTP specification: no header leaves before the first of the body is there."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            if not message.get("more_body") and self._send_at_once(start, message.get("body", b"")):
                return
            await super().send(start)
        await super().send(message)

    def _send_at_once(self, start: Any, body: bytes) -> bool:
        """Send a whole answer. False, and nothing is done, where there is more to it, or where
        something is wrong with it, which uvicorn tells.
        """
        if self.flow.write_paused or self.disconnected or not self.keep_alive:
            return False
        if len(body) > _JOINED or self.scope["method"] == "HEAD":
            return False
        length = None
        headers = (*self.default_headers, *start.get("headers", ()))
        parts = [STATUS_LINE[start["status"]]]
        for name, value in headers:
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name in _ENDINGS:
                return False
            parts += (name, b": ", value, b"\r\n")
        if length != len(body):
            return False
        parts.append(b"\r\n")
        head = b"".join(parts)
        lines = len(headers) + 2
        if head.count(b"\n") != lines or head.count(b"\r") != lines or _UNFIT.search(head):
            return False
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.transport.write(head + body)
        self.on_response()
        return True


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, line: Line, **parts: Any) -> None:
        super().__init__(**parts)
        self._line = line
        self._surplus = False
        self._fault: TernausError | None = None
        self._over = False
        # Bytes of the head that is being received, in whole headers and as they came.
        self._head_bytes = 0
        self._head_received = 0
        self._head_count = 0
        self._head_begins = False
        self._in_head = False
        self._in_body = False
        self._head_clock: asyncio.TimerHandle | None = None
        self._rest_clock: asyncio.TimerHandle | None = None
        self._send_clock: asyncio.TimerHandle | None = None
        # See `app.api.visits.Client`.
        self.gone = False
        self._when_gone: Callable[[], None] | None = None

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Who wants to know that nobody will read the answer."""
        self._when_gone = call

    @property
    def whole(self) -> bool:
        """The request that is being answered is here to its last byte: none is waited for."""
        return not self._in_body

    def _leave(self) -> None:
        self.gone = True
        call, self._when_gone = self._when_gone, None
        if call is not None:
            call()

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        line = self._line
        if len(self.connections) > line.max_connections:
            longest = next(iter(line.idle), None)
            if longest is not None:
                del line.idle[longest]
                longest._cut("idle")
                longest.timeout_keep_alive_handler()
            elif len(self.connections) > _HARD * line.max_connections:
                self._abort("too_many")
                return
            else:
                self._surplus = True
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.idle.pop(self, None)
        self._unset_keepalive_if_required()
        for clock in (self._head_clock, self._rest_clock, self._send_clock):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)
        self._leave()

    def shutdown(self) -> None:
        super().shutdown()
        self._see_it_closed()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._see_it_closed()

    # What comes.

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._line.idle.pop(self, None)
        if self._over:
            return
        self._head_begins = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # RFC 9110, section 7.8: an upgrade may be ignored. The request goes on as it is.
            pass
        except httptools.HttpParserError:
            self._refuse(self._fault or MalformedRequest("this is not HTTP/1.1"))
            return
        if self._in_head:
            # What a head begins in may be for the greater part the body before it.
            self._head_received += 0 if self._head_begins else len(data)
            if self._head_received > self._line.max_header_bytes + self._line.max_url_bytes:
                self._refuse(self._too_large())
                return
        elif self._in_body:
            cycle = self.cycle
            if not cycle.response_complete and len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return
        elif not (self.cycle is None or self.cycle.response_complete):
            return
        # Neither a whole head nor a part of a body: bytes that begin something, or nothing at all.
        self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][CLIENT] = self
        self._in_head = self._head_begins = True
        self._head_bytes = self._head_received = self._head_count = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        line = self._line
        if len(self.url) > line.max_url_bytes:
            raise self._stop(
                UrlTooLong(
                    f"the address is longer than {line.max_url_bytes:,} bytes "
                    "(TERNAUS_MAX_URL_BYTES)",
                    limit="TERNAUS_MAX_URL_BYTES",
                    limit_value=line.max_url_bytes,
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_count += 1
        self._head_bytes += len(name) + len(value) + 4
        if (
            self._head_bytes > self._line.max_header_bytes
            or self._head_count > self._line.max_headers
        ):
            raise self._stop(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None
        if self._surplus and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
            raise self._stop(
                TooManyConnections(
                    f"{self._line.max_connections:,} connections are open "
                    "(TERNAUS_MAX_CONNECTIONS)",
                    limit="TERNAUS_MAX_CONNECTIONS",
                    limit_value=self._line.max_connections,
                )
            )
        super().on_headers_complete()
        # Made by uvicorn just now, and not begun.
        self.cycle.__class__ = Cycle
        if self._surplus:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, without its copies of a body that comes in one piece, and without telling
        the kernel to stop sending what is here to its end already.
        """
        cycle = self.cycle
        if cycle.response_complete:
            return
        # Bytes, where uvicorn has a bytearray: a copy, which it takes of both, costs nothing then.
        cycle.body = cycle.body + body if cycle.body else body  # type: ignore[assignment]
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._rest_clock is not None:
            self._rest_clock.cancel()
            self._rest_clock = None
        super().on_message_complete()

    # What goes.

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_clock is None:
            self._send_clock = self.loop.call_later(self._line.send_timeout_s, self._unsent)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._stop_send_clock()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.flow.write_paused:
            self._stop_send_clock()
        if self.transport.is_closing():
            self._see_it_closed()
        elif self._in_body and self.cycle.response_complete:
            # Answered before the body was whole. Its rest is thrown away, for a while.
            self._rest_clock = self.loop.call_later(
                self._line.body_timeout_s, self._abort, "rest_of_body"
            )
        elif self.timeout_keep_alive_task is not None:
            self._line.idle[self] = None

    # The ends.

    def _await_head(self) -> None:
        if self._head_clock is None:
            self._head_clock = self.loop.call_later(self._line.header_timeout_s, self._head_late)

    def _head_late(self) -> None:
        self._head_clock = None
        if self.cycle is not None and not self.cycle.response_complete:
            # A second request came in pieces while the first is being answered.
            self._await_head()
        elif self._in_head:
            self._refuse(
                HeadersTooSlow(
                    f"the headers were not whole after {self._line.header_timeout_s:g} s "
                    "(TERNAUS_HEADER_TIMEOUT_S)",
                    limit="TERNAUS_HEADER_TIMEOUT_S",
                    limit_value=self._line.header_timeout_s,
                )
            )
        else:
            self._cut("silent")
            self.transport.close()
            self._see_it_closed()

    def _unsent(self) -> None:
        self._send_clock = None
        if self.transport.get_write_buffer_size():
            self._abort("answer_not_taken")

    def _stop_send_clock(self) -> None:
        if self._send_clock is not None:
            self._send_clock.cancel()
            self._send_clock = None

    def _see_it_closed(self) -> None:
        """A closed transport waits until the client has taken everything; not for ever."""
        if self._send_clock is None and self.transport.get_write_buffer_size():
            self._send_clock = self.loop.call_later(self._line.send_timeout_s, self._unsent)

    def _abort(self, reason: str) -> None:
        self._cut(reason)
        self.transport.abort()

    def _cut(self, reason: str, **fields: Any) -> None:
        """Count it, and say so."""
        self._line.cut(reason)
        if self._line.logged:
            fields |= {"code": reason, "client": self.client[0] if self.client else ""}
            log.info("connection cut off", extra={"fields": fields})

    def _too_large(self) -> TernausError:
        line = self._line
        if self._head_count > line.max_headers:
            name, value = "TERNAUS_MAX_HEADERS", line.max_headers
            words = f"there are more than {value:,} headers ({name})"
        else:
            name, value = "TERNAUS_MAX_HEADER_BYTES", line.max_header_bytes
            words = f"the headers are larger than {value:,} bytes ({name})"
        return HeadersTooLarge(words, limit=name, limit_value=value)

    def _stop(self, fault: TernausError) -> _Refused:
        self._fault = fault
        return _Refused()

    def _refuse(self, exc: TernausError) -> None:
        """Say why, then close. What was being worked on is dropped."""
        self._over = True
        request_id = request_id_of(dict(self.headers or ()))
        self._cut(exc.code, request_id=request_id, status=exc.status, path=self._place())
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                # Half an answer is out; another one in its middle would be a lie.
                self._abort("half_answered")
                return
            cycle.disconnected = True
            cycle.message_event.set()
            self._leave()
        status, headers, body = problem(exc, request_id=request_id, instance=self._place())
        headers = [
            *self.server_state.default_headers,
            *headers,
            NOSNIFF,
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def _place(self) -> str:
        url: bytes = getattr(self, "url", b"")
        return url.partition(b"?")[0][:200].decode("ascii", "replace")
