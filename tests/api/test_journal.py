"""A line for each request, with all that helps and nothing that must not be in a log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.types import Pixels
from tests.api.lines import connected, eventually, head
from tests.fakes import FakeEngine
from tests.server import Running, encoded, picture, running, sampled

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store"), api_keys="the-secret-key") as found:
        found.client.headers["x-api-key"] = "the-secret-key"
        yield found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "ternaus")

    def found(request_id: str) -> list[dict[str, Any]]:
        seen = [getattr(r, "fields", {}) for r in caplog.records if r.name == "ternaus.access"]
        return [fields for fields in seen if fields["request_id"] == request_id]

    def awaited(request_id: str, *, wait: bool = True) -> list[dict[str, Any]]:
        """A client may have its answer before the line is written."""
        if wait:
            eventually(lambda: bool(found(request_id)), "there is no line")
        return found(request_id)

    return awaited


def test_picture(server: Running, lines: Any) -> None:
    data = encoded(picture(), "JPEG")
    answer = server.post(
        data, "?threshold=0.4", x_request_id="one", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01"
    )
    assert answer.status_code == 200
    [line] = lines("one")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/segment", 200)
    assert (line["code"], line["model"], line["trace_id"]) == ("ok", "fake@1", TRACE)
    assert (line["format"], line["width"], line["height"]) == ("jpeg", 80, 48)
    assert (line["bytes_in"], line["bytes_out"]) == (len(data), len(answer.content))
    assert line["client"] == "127.0.0.1"
    assert set(line["stages_ms"]) == {"receive", "decode", "queue", "infer", "encode"}
    assert 0 < sum(line["stages_ms"].values()) <= line["duration_ms"] + 0.1
    json.dumps(line)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/segment?colour=secret-word", 400, "bad_parameter"),
        ("GET", "/models/nobody?token=secret-word", 404, "model_not_found"),
        ("GET", "/nowhere", 404, "route_not_found"),
        ("GET", "/segment", 405, "method_not_allowed"),
        ("GET", "/health", 200, "ok"),
        ("GET", "/docs", 200, "ok"),
    ],
)
def test_every_other_request(
    server: Running, lines: Any, method: str, path: str, status: int, code: str
) -> None:
    headers = {"x-request-id": "two", "authorization": "Bearer the-secret-key", "cookie": "hidden"}
    answer = server.client.request(method, path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "two"
    [line] = lines("two")
    assert (line["path"], line["status"], line["code"]) == (path.split("?")[0], status, code)
    assert line["bytes_out"] == len(answer.content)
    for word in ("secret", "hidden"):
        assert word not in json.dumps(line)


def test_refused_key(server: Running, lines: Any) -> None:
    headers = {"x-request-id": "three", "x-api-key": "a-wrong-secret"}
    assert server.client.post("/segment", headers=headers).status_code == 401
    [line] = lines("three")
    assert (line["status"], line["code"]) == (401, "key_required")
    assert "secret" not in json.dumps(line)


def test_probes_are_silent(server: Running, lines: Any) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert server.client.get(path, headers={"x-request-id": "four"}).status_code == 200
    server.client.get("/health", headers={"x-request-id": "four"})
    assert [line["path"] for line in lines("four")] == ["/health"]


def test_path_of_a_client_is_kept_short(server: Running, lines: Any) -> None:
    with connected(server) as raw:
        path = "/" + "a" * 5000 + "%0d%0aforged"
        raw.send(head(None, "X-Request-Id: five", path=path))
        assert raw.answer()[0] == 401
    [line] = lines("five")
    assert len(line["path"]) <= 200


@pytest.mark.parametrize(("wanted", "told"), [("none", []), ("failures", [500])])
def test_less_may_be_wanted(tmp_path: Path, lines: Any, wanted: str, told: list[int]) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine, access_log=wanted) as server:

        def fail(pixels: Pixels) -> None:
            raise RuntimeError("no")

        assert server.post(encoded(picture()), x_request_id="six").status_code == 200
        engine.before = fail
        assert server.post(encoded(picture()), x_request_id="six").status_code == 500
    assert [line["status"] for line in lines("six", wait=False)] == told


def test_no_stack_reaches_a_client_and_every_one_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a picture, and in any other route."""
    with running(tmp_path) as server:

        def broken(*asked: Any) -> Any:
            raise RuntimeError("password in /etc/secret")

        server.house.describe = broken  # type: ignore[method-assign]
        server.house.segmenter.catalog.get = broken  # type: ignore[method-assign, assignment]
        answers = [
            server.client.get("/health", headers={"x-request-id": "seven"}),
            server.post(encoded(picture()), x_request_id="seven"),
            server.client.get("/models/fake", headers={"x-request-id": "seven"}),
        ]
    for answer in answers:
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (answer.json()["code"], answer.json()["request_id"]) == ("internal", "seven")
        for word in ("Traceback", "password", "RuntimeError", "File", ".py"):
            assert word not in answer.text
    told = [r for r in caplog.records if r.exc_info and "password" in str(r.exc_info[1])]
    assert [getattr(r, "fields", {})["request_id"] for r in told] == ["seven"] * 3
