"""What every request passes first: keys, where there are any; and for all but pictures, which see
to it themselves, an id, a log line, and an answer that tells nothing internal if something breaks.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp

from app.api.journal import Journal
from app.api.keys import Keys
from app.api.problems import problem
from app.api.segment import SegmentEndpoint
from app.api.visits import Receive, Scope, Send, Visit, visit_of
from app.errors import KeyRequired, TernausError
from app.serving.clock import Clock
from app.serving.metrics import Metrics

# Never behind a key: probes, and what tells of the interface alone, which is no secret.
PROBES = frozenset({"/health/live", "/health/ready"})
_PUBLIC = PROBES | {"/", "/docs", "/openapi.json"}


def needs_key(path: str) -> bool:
    """Whether a key, where there are any, is asked for at this path: yes, if in doubt."""
    return path not in _PUBLIC and not path.startswith("/docs/")


class Reception:
    """An ASGI layer around the application. `pictures` takes what is posted to its route, at once:
    the layers and the router below would find the same endpoint, later.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pictures: SegmentEndpoint,
        keys: Keys,
        journal: Journal,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._app = app
        self._pictures = pictures
        self._keys = keys
        self._journal = journal
        self._metrics = metrics
        self._clock = clock

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own: where no key is asked for, a picture passes for a function call.
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        if self._keys and needs_key(scope["path"]) and not self._keys.known(dict(scope["headers"])):
            return self._refuse(scope, send)
        if scope["path"] == self._pictures.route and scope["method"] == "POST":
            return self._pictures(scope, receive, send)
        return self._receive(scope, receive, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        """Before a byte of the body is read."""
        visit = self._visit(scope)
        exc = KeyRequired(
            "this server wants an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`"
        )
        status = await self._tell(scope, visit, exc, send)
        route = self._pictures.route if scope["path"] == self._pictures.route else "other"
        self._metrics.requests.labels(route, str(status), exc.code).inc()
        self._journal.enter(scope, visit, status, self._clock.now())

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = self._visit(scope)
        scope.setdefault("state", {})["visit"] = visit
        status = 0

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *visit.headers()]}
            else:
                visit.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as exc:
            if status:
                raise
            status = await self._tell(scope, visit, exc, send)
        self._journal.enter(scope, visit, status, self._clock.now())

    def _visit(self, scope: Scope) -> Visit:
        return visit_of(scope, dict(scope["headers"]), self._clock.now())

    async def _tell(self, scope: Scope, visit: Visit, exc: Exception, send: Send) -> int:
        status, headers, body = problem(
            exc, request_id=visit.request_id, trace_id=visit.trace_id, instance=scope["path"]
        )
        visit.reason, visit.sent = getattr(exc, "code", TernausError.code), len(body)
        headers += [*visit.headers(), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return status
