"""Requests as OpenTelemetry spans: one for the request, a child of the client's, and one for each
stage. Imported only where spans are asked for.

Names follow OpenTelemetry's conventions for HTTP servers; our own attributes begin with `ternaus.`.
Where spans go, and which are kept, the SDK reads from its own variables (`OTEL_...`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from app import __version__
from app.api.traces import Trace
from app.api.visits import Scope, Visit
from app.errors import ClientGone
from app.serving.segmenter import STAGES, Timings

NAME = "ternausnet-serve"


class Spans:
    """Tells a provider of requests (the `Tracing` of the endpoint)."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("ternaus", __version__)

    @classmethod
    def exporting(cls) -> Spans:
        """Spans sent over OTLP/HTTP, from a thread of the SDK's, to where its variables say."""
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get("service.name")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": NAME}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._provider.shutdown()

    def begin(self, scope: Scope, visit: Visit) -> Callable[[int], None]:
        """See `Tracing`."""
        begun_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}",
            context=set_span_in_context(_remote(visit.trace)) if visit.trace else None,
            kind=SpanKind.SERVER,
            start_time=begun_ns,
            attributes=_asked(scope, visit),
        )
        visit.trace = _trace_of(span.get_span_context())

        def ended(status: int) -> None:
            end_ns = time.time_ns()
            if span.is_recording():
                self._stages(span, visit, begun_ns, end_ns)
                span.set_attributes(_answered(visit, status))
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR, visit.reason))
            span.end(end_ns)

        return ended

    def _stages(self, parent: Span, visit: Visit, begun_ns: int, end_ns: int) -> None:
        """A span for each stage that began; the one in which the request failed ends with it."""
        context = set_span_in_context(parent)
        for name, begun_s, seconds in _spent(visit.timings, visit.arrived):
            start_ns = begun_ns + round((begun_s - visit.arrived) * 1e9)
            stop_ns = end_ns if seconds is None else start_ns + round(seconds * 1e9)
            stage = self._tracer.start_span(name, context=context, start_time=start_ns)
            if seconds is None and visit.reason != "ok":
                stage.set_attribute("error.type", visit.reason)
                stage.set_status(Status(StatusCode.ERROR, visit.reason))
            stage.end(stop_ns)


def _spent(timings: Timings, arrived: float) -> list[tuple[str, float, float | None]]:
    """Stages that began: name, moment, seconds; None: it never ended."""
    begun = {"receive": arrived, **timings.begun}
    names = [name for name in STAGES if name in begun]
    found: list[tuple[str, float, float | None]] = []
    for name, following in zip(names, [*names[1:], None], strict=True):
        seconds: float | None = getattr(timings, name) or None
        if seconds is None and following is not None:
            seconds = max(0.0, begun[following] - begun[name])
        found.append((name, begun[name], seconds))
    return found


def _remote(trace: Trace) -> Span:
    return NonRecordingSpan(
        SpanContext(
            trace_id=int(trace.trace_id, 16),
            span_id=int(trace.parent_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(int(trace.flags, 16)),
            trace_state=TraceState.from_header([trace.state]) if trace.state else TraceState(),
        )
    )


def _trace_of(context: SpanContext) -> Trace:
    return Trace(
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
        f"{context.trace_flags:02x}",
        context.trace_state.to_header(),
    )


def _asked(scope: Scope, visit: Visit) -> dict[str, AttributeValue]:
    """What is known at once; samplers see it too."""
    found: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "http.route": scope["path"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        "ternaus.request_id": visit.request_id,
    }
    if scope.get("server"):
        found["server.address"], port = scope["server"]
        if port is not None:
            found["server.port"] = port
    if scope.get("client"):
        found["client.address"] = scope["client"][0]
    return found


def _answered(visit: Visit, status: int) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {"http.request.body.size": visit.received}
    timings = visit.timings
    if visit.reason != ClientGone.code:
        found |= {"http.response.status_code": status, "http.response.body.size": visit.sent}
    if status >= 500 or visit.reason == ClientGone.code:
        found["error.type"] = visit.reason
    if timings.model:
        found["ternaus.model"] = timings.model
    if timings.picture is not None:
        width, height = timings.picture.seen_size
        found |= {
            "ternaus.picture.format": timings.picture.format,
            "ternaus.picture.width": width,
            "ternaus.picture.height": height,
        }
    if timings.tiles:
        found["ternaus.picture.tiles"] = timings.tiles
    return found
