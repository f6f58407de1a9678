"""`POST /segment`: a plain ASGI endpoint, because a client that leaves must be noticed at every
stage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.api.forms import parse_form
from app.api.journal import Journal
from app.api.limits import read_body, timeout_s
from app.api.options import Asks
from app.api.problems import Header, problem
from app.api.visits import CLIENT, Client, Receive, Scope, Send, Tracing, Visit, visit_of
from app.errors import BadParameter, ClientGone, EmptyBody, PictureUnsupported, TernausError
from app.serving.admission import Admission, Permit
from app.serving.clock import Clock
from app.serving.metrics import Metrics
from app.serving.segmenter import Answer, Ask, Segmenter, Timings


class SegmentEndpoint:
    """Takes a picture as raw body or form and answers its mask."""

    route = "/segment"

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        admission: Admission,
        metrics: Metrics,
        clock: Clock,
        request_timeout_s: float,
        body_timeout_s: float,
        overload_status: int,
        closing: Callable[[], bool],
        journal: Journal,
        tracing: Tracing | None = None,
    ) -> None:
        self._segmenter = segmenter
        self._admission = admission
        self._metrics = metrics
        self._clock = clock
        self._request_timeout = request_timeout_s
        self._body_timeout = body_timeout_s
        self._overload_status = overload_status
        self._closing = closing
        self._journal = journal
        self._tracing = tracing
        self._asks = Asks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        visit = visit_of(scope, headers, self._clock.now())
        client: Client = scope.get("state", {}).get(CLIENT) or _Listener(receive)
        ended = self._tracing.begin(scope, visit) if self._tracing is not None else None
        try:
            answer = await self._answer(scope, headers, receive, client, visit)
        except ClientGone as exc:
            status, visit.reason = exc.status, exc.code
            self._metrics.cancelled.labels("request").inc()
        except Exception as exc:
            status, extra, body = problem(
                exc,
                request_id=visit.request_id,
                trace_id=visit.trace_id,
                instance=self.route,
                overload_status=self._overload_status,
            )
            visit.reason = getattr(exc, "code", TernausError.code)
            await self._send(send, visit, status, [*extra, *visit.headers()], body)
        else:
            status = 200
            await self._send(send, visit, status, self._headers(answer, visit), answer.body)
        self._count(scope, visit, status)
        if ended is not None:
            ended(status)

    async def _answer(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        client: Client,
        visit: Visit,
    ) -> Answer:
        arrived, timings = visit.arrived, visit.timings
        deadline = arrived + timeout_s(headers.get(b"x-request-timeout-ms"), self._request_timeout)
        content_type = headers.get(b"content-type", b"")
        form = content_type.lower().startswith(b"multipart/form-data")
        accept = headers.get(b"accept", b"").decode("latin-1")
        query: bytes = scope.get("query_string", b"")
        ask = self._asks.read(query, accept)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise PictureUnsupported(
                "a `Content-Encoding` is not supported; pictures are compressed already"
            )
        length = _content_length(headers)
        with self._admission.admit(deadline=deadline, content_length=length) as permit:
            data = await read_body(
                receive,
                permit,
                announced=length,
                deadline=deadline,
                silence_s=self._body_timeout,
                clock=self._clock,
                client=client,
            )
            visit.received = len(data)
            if form:
                parsed = parse_form(data, content_type)
                data = parsed.file
                if parsed.fields:
                    ask = self._asks.read(query, accept, parsed.fields)
            elif not data:
                raise EmptyBody("the body is empty; send the bytes of a picture")
            timings.receive = self._clock.now() - arrived
            return await self._segment(data, ask, deadline, permit, timings, client)

    async def _segment(
        self,
        data: bytes,
        ask: Ask,
        deadline: float,
        permit: Permit,
        timings: Timings,
        client: Client,
    ) -> Answer:
        """Segment, and stop when the client leaves: Starlette would not notice by itself.

        The work is done in this very task, so that the permit is given back only when the work has
        let go; it is cancelled when the client leaves.
        """
        task = asyncio.current_task()
        assert task is not None
        left = False

        def leave() -> None:
            nonlocal left
            left = True
            task.cancel()

        client.when_gone(leave)
        try:
            if client.gone:
                leave()
            return await self._segmenter.segment(
                data, ask, deadline=deadline, permit=permit, timings=timings
            )
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientGone(f"the client left in the stage `{timings.stage}`") from None
            raise
        finally:
            client.when_gone(None)

    def _headers(self, answer: Answer, visit: Visit) -> list[Header]:
        timings = answer.timings
        total = self._clock.now() - visit.arrived
        found = [
            (b"content-type", answer.encoding.media_type.encode()),
            *visit.headers(),
            (b"x-model", f"{answer.mask.model}@{answer.mask.version}".encode()),
            (b"server-timing", timings.header().encode()),
            (b"x-queue-time", b"%d" % round(timings.queue * 1000)),
            (b"x-inference-time", b"%d" % round(timings.infer * 1000)),
            (b"x-total-time", b"%d" % round(total * 1000)),
            (b"vary", b"Accept"),
        ]
        if answer.orientation != 1:
            found.append((b"x-orientation-applied", str(answer.orientation).encode()))
        return found

    async def _send(
        self, send: Send, visit: Visit, status: int, headers: list[Header], body: bytes
    ) -> None:
        visit.sent = len(body)
        headers.append((b"content-length", b"%d" % len(body)))
        if self._closing():
            # A client on a kept-alive connection should find another replica for its next request.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _count(self, scope: Scope, visit: Visit, status: int) -> None:
        """Metrics and log line of a request that is done."""
        now = self._clock.now()
        self._metrics.requests.labels(self.route, str(status), visit.reason).inc()
        self._metrics.images.labels(visit.reason).inc()
        self._metrics.request_seconds.labels(self.route).observe(now - visit.arrived)
        self._journal.enter(scope, visit, status, now)


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit():
        raise BadParameter("`Content-Length` must be a whole number")
    return int(text)


class _Listener:
    """The client behind any server of ASGI: a task waits to be told that it left."""

    gone = False
    whole = False

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._listening: asyncio.Task[None] | None = None

    def when_gone(self, call: Callable[[], None] | None) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        if call is not None:
            self._listening = asyncio.ensure_future(self._listen(call))

    async def _listen(self, call: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        call()
