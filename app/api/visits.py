"""One request as logs, traces and error documents know it, from its headers to its last byte."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.api.traces import Header, Trace, trace_of
from app.serving.segmenter import Timings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

# Browsers take an answer for what it says it is: a mask is never run, whatever its bytes.
NOSNIFF = (b"x-content-type-options", b"nosniff")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Visit:
    """`arrived` is a moment of the clock; `reason` is `ok` or the `code` of an error; `received`
    and `sent` are bytes of bodies.
    """

    arrived: float
    request_id: str
    trace: Trace | None = None
    timings: Timings = field(default_factory=Timings)
    reason: str = "ok"
    received: int = 0
    sent: int = 0

    @property
    def trace_id(self) -> str:
        """Empty where the request belongs to no trace."""
        return self.trace.trace_id if self.trace is not None else ""

    def headers(self) -> list[Header]:
        """What every answer says of its request."""
        found = [(b"x-request-id", self.request_id.encode()), NOSNIFF]
        if self.trace is not None:
            found += self.trace.headers()
        return found


class Client(Protocol):
    """Whoever is at the other end of a connection; in a request's state as `CLIENT`, where ours."""

    @property
    def gone(self) -> bool:
        """Nobody will read an answer."""
        ...

    @property
    def whole(self) -> bool:
        """Every byte of the request's body is here: reading it waits for nothing."""
        ...

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Have `call` called on the event loop as soon as the client leaves. One at a time; None:
        nobody wants to know any more.
        """
        ...


# ASGI tells that a client left only to a task that waits to be told. Our own connections know.
CLIENT = "client"


class Tracing(Protocol):
    """Tells somebody of requests, as spans."""

    def begin(self, scope: Scope, visit: Visit) -> Callable[[int], None]:
        """A request begins: `visit` gets the trace of its own span. Call what is returned with the
        status once it is answered.
        """
        ...


def visit_of(scope: Scope, headers: Mapping[bytes, bytes], arrived: float) -> Visit:
    """A request that arrives. `headers` are those of the scope, as a mapping."""
    trace = trace_of(scope["headers"]) if b"traceparent" in headers else None
    return Visit(arrived, request_id_of(headers), trace)


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's `X-Request-Id`, if it is short and printable, or a new one.

    Drawn without the kernel, whose call gives the interpreter away in the middle of each request.
    """
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
