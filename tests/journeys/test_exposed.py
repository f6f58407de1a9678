"""A server that strangers can reach: keys from a mounted file, JSON lines, and clients that mean no
good, all against a real process.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.journeys.process import Process, serving
from tests.journeys.test_command_line import ternaus
from tests.journeys.test_serve import MODEL, piece, sample

pytestmark = pytest.mark.journey

KEY = "a-key-that-must-not-be-seen"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def exposed(warm_cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    keys = tmp_path_factory.mktemp("secrets") / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(
        "--model",
        MODEL,
        TERNAUS_CACHE_DIR=warm_cache,
        TERNAUS_DRAIN_GRACE_S="0",
        TERNAUS_API_KEYS_FILE=str(keys),
        TERNAUS_HEADER_TIMEOUT_S="0.5",
        TERNAUS_LOG_FORMAT="json",
    ) as process:
        process.wait_ready()
        yield process


def test_every_line_is_json_and_tells_no_secret(exposed: Process) -> None:
    data, _ = sample()
    with httpx.Client(base_url=exposed.url, trust_env=False, timeout=60) as client:
        assert client.post("/segment", content=data).status_code == 401
        answer = client.post(
            "/segment?threshold=0.4",
            content=data,
            headers={
                "authorization": f"Bearer {KEY}",
                "x-request-id": "mine",
                "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
            },
        )
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
    host, port = exposed.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert line.recv(65536).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 414 ")
    exposed.terminate()
    assert exposed.wait_exit() == 0
    events = [json.loads(text) for text in exposed.log]
    for event in events:
        assert {"time", "level", "logger", "message"} <= set(event)
    [picture] = [event for event in events if event.get("request_id") == "mine"]
    assert (picture["status"], picture["trace_id"]) == (200, TRACE)
    assert picture["model"].startswith(f"{MODEL}@")
    assert picture["bytes_in"] == len(data)
    cut = [event["code"] for event in events if event["message"] == "connection cut off"]
    assert {"headers_too_slow", "url_too_long"} <= set(cut)
    assert KEY not in exposed.text
    assert "0.4" not in [event.get("path") for event in events]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TERNAUS_API_KEYS_FILE": "/no/such/file"}, "TERNAUS_API_KEYS_FILE"),
        ({"TERNAUS_ADMIN_KEY_FILE": "/no/such/file"}, "TERNAUS_ADMIN_KEY_FILE"),
        ({"TERNAUS_API_KEYS": ","}, "TERNAUS_API_KEYS"),
        ({"TERNAUS_API_KEY": KEY}, "TERNAUS_API_KEYS"),
    ],
)
def test_door_does_not_open_by_mistake(environment: dict[str, str], words: str) -> None:
    done = ternaus("serve", **environment)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr


def test_evaluate_sends_its_key(warm_cache: str, tmp_path: Path) -> None:
    data = piece()
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    (tmp_path / "data" / "images" / "a.png").write_bytes(data)
    with serving("--model", MODEL, TERNAUS_CACHE_DIR=warm_cache, TERNAUS_API_KEYS=KEY) as process:
        process.wait_ready()
        with httpx.Client(base_url=process.url, trust_env=False, timeout=60) as client:
            mask = client.post("/segment?format=png8", content=data, headers={"x-api-key": KEY})
        (tmp_path / "data" / "masks" / "a.png").write_bytes(mask.content)
        asked = ("evaluate", MODEL, "--data", str(tmp_path / "data"), "--url", process.url)
        done = ternaus(*asked, TERNAUS_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
