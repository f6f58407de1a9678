"""Requests as OpenTelemetry spans: against the SDK's own memory, and over a real line to a
collector that reads the bytes with OpenTelemetry's own protocol buffers.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from app.api.segment import SegmentEndpoint
from app.api.telemetry import Spans
from app.api.traces import trace_of
from app.settings import Settings
from app.types import Pixels
from tests.api.lines import PATIENCE, eventually
from tests.fakes import FakeEngine
from tests.server import Running, encoded, picture, running, sampled

ROOT = Path(__file__).parent.parent.parent
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["receive", "decode", "queue", "infer", "encode"]


def traced(server: Running, **options: Any) -> InMemorySpanExporter:
    """Have the server tell this exporter of its requests."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(**options)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    app: Any = server.server.config.app
    [endpoint] = [
        route.app
        for route in app.routes
        if isinstance(getattr(route, "app", None), SegmentEndpoint)
    ]
    endpoint._tracing = Spans(provider)
    return memory


def spans_of(memory: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, ReadableSpan]]:
    """The span of the one request, once it has ended, and those of its stages."""

    def request() -> list[ReadableSpan]:
        return [s for s in memory.get_finished_spans() if s.kind == SpanKind.SERVER]

    eventually(lambda: bool(request()), "no span")
    [server] = request()
    stages = [s for s in memory.get_finished_spans() if s is not server]
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == server.context.span_id
        assert span.context.trace_id == server.context.trace_id
    return server, {span.name: span for span in stages}


def test_request_and_its_stages(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        memory = traced(server)
        data = encoded(picture())
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        answer = server.client.post("/segment", content=data, headers=headers)
        span, stages = spans_of(memory)
        assert span.name == "POST /segment"
        assert format(span.context.trace_id, "032x") == TRACE
        assert span.parent is not None
        assert format(span.parent.span_id, "016x") == PARENT
        told = trace_of([(k.encode(), v.encode()) for k, v in answer.headers.items()])
        assert told is not None
        assert (told.trace_id, told.state) == (TRACE, "vendor=1")
        assert told.parent_id == format(span.context.span_id, "016x")
        attributes = dict(span.attributes or {})
        assert attributes["http.request.method"] == "POST"
        assert attributes["http.route"] == attributes["url.path"] == "/segment"
        assert attributes["http.response.status_code"] == 200
        assert attributes["http.request.body.size"] == len(data)
        assert attributes["http.response.body.size"] == len(answer.content)
        assert attributes["ternaus.model"] == "fake@1"
        assert attributes["ternaus.picture.width"] == 80
        assert attributes["ternaus.request_id"] == answer.headers["x-request-id"]
        assert span.status.status_code is StatusCode.UNSET
        assert list(stages) == STAGES
        assert span.start_time is not None
        assert span.end_time is not None
        last = span.start_time
        for stage in stages.values():
            assert stage.start_time is not None
            assert stage.end_time is not None
            assert last <= stage.start_time + 1000
            assert stage.start_time <= stage.end_time <= span.end_time + 1_000_000
            last = stage.start_time


def test_request_without_a_trace_begins_one(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        memory = traced(server)
        answer = server.post(encoded(picture()), traceparent="00-nonsense")
        span, _ = spans_of(memory)
        assert span.parent is None
        assert format(span.context.trace_id, "032x") in answer.headers["traceparent"]


def test_failure_is_told_in_the_stage_where_it_happened(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine) as server:
        memory = traced(server)

        def fail(pixels: Pixels) -> None:
            raise RuntimeError("no")

        engine.before = fail
        assert server.post(encoded(picture())).status_code == 500
        span, stages = spans_of(memory)
        assert span.status.status_code is StatusCode.ERROR
        assert dict(span.attributes or {})["error.type"] == "inference_failed"
        *well, failed = stages.values()
        assert failed.status.status_code is StatusCode.ERROR
        assert all(stage.status.status_code is StatusCode.UNSET for stage in well)
        memory.clear()
        assert server.post(b"hello").status_code == 415
        span, stages = spans_of(memory)
        assert span.status.status_code is StatusCode.UNSET, "the fault is the client's"
        assert dict(span.attributes or {})["http.response.status_code"] == 415


def test_what_is_not_sampled_is_still_passed_on(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        memory = traced(server, sampler=ALWAYS_OFF)
        answer = server.post(encoded(picture()), traceparent=f"00-{TRACE}-{PARENT}-01")
        assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert answer.headers["traceparent"].endswith("-00")
        server.post(encoded(picture()))
        assert memory.get_finished_spans() == ()


class Collector:
    """An OTLP/HTTP collector: keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.come = threading.Event()


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    collector = Collector()

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            collector.requests.append(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            collector.come.set()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Door) as door:
        thread = threading.Thread(target=door.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{door.server_port}", collector
        door.shutdown()
        thread.join(PATIENCE)


def test_spans_reach_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (url, collector):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with running(tmp_path) as server:
            server.post(encoded(picture()), traceparent=f"00-{TRACE}-{PARENT}-01")
        # The server's end sends what is left.
        assert collector.come.is_set()
    resources = [r for request in collector.requests for r in request.resource_spans]
    names = {a.key: a.value.string_value for a in resources[0].resource.attributes}
    assert names["service.name"] == "ternausnet-serve"
    spans = [s for r in resources for scope in r.scope_spans for s in scope.spans]
    assert sorted(s.name for s in spans) == sorted(["POST /segment", *STAGES])
    assert {s.trace_id.hex() for s in spans} == {TRACE}


@pytest.mark.parametrize(
    ("environment", "setting", "traced"),
    [
        ({}, "auto", False),
        ({}, "on", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "auto", True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "auto", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "off", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, "auto", False),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
            "auto",
            False,
        ),
    ],
)
def test_when_spans_are_asked_for(
    environment: dict[str, str], setting: str, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings.read(tracing=setting).traced() is traced


LOADS = """
import sys
from app.api.app import create_app
from app.settings import Settings
create_app(Settings.read(tracing={setting!r}), labels=tuple, resolve=str, open_engine=str)
print(sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk")) != [])
"""
ABSENT = """
import sys
sys.modules["opentelemetry.sdk"] = None
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_off_costs_no_import() -> None:
    assert python(LOADS.format(setting="auto")).stdout.strip() == "False"


def test_missing_extra_is_said_in_a_sentence() -> None:
    done = python(ABSENT + LOADS.format(setting="on"))
    assert "ternausnet-serve[telemetry]" in done.stderr
    assert "SettingsError" in done.stderr
