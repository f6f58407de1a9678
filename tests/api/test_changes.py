"""Loading and unloading over HTTP: who may, what is asked, what is answered."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import Running, running
from tests.shelf import Shelf

KEY = "a key with spaces"
ADMIN = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path)
    for version in (1, 2, 3):
        shelf.publish("fake", version)
    shelf.publish("other", 1)
    return shelf


@pytest.fixture
def server(shelf: Shelf, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, shelf=shelf, models=("fake@1",), admin_key=KEY) as found:
        yield found


def change(server: Running, path: str, **options: Any) -> httpx.Response:
    return server.client.post(path, **{"headers": ADMIN, **options})


def test_without_an_admin_key_there_is_no_such_place(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for path in ("/models/fake/load", "/models/fake/unload"):
            answer = change(server, path)
            assert answer.status_code == 404
            assert answer.json()["code"] == "route_not_found"
        document = server.client.get("/openapi.json").json()
        assert not [path for path in document["paths"] if path.endswith("load")]
        assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize("what", ["load", "unload"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"x-api-key": ""}],
    ids=["none", "wrong", "no scheme", "empty"],
)
def test_without_the_key_nobody_learns_anything(
    server: Running, what: str, headers: dict[str, str]
) -> None:
    answer = server.client.post(f"/models/nobody/{what}?nonsense=1", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="ternaus"'
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "key_required"


def test_body_of_a_stranger_is_not_read(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(
            b"POST /models/fake/load HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert line.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("headers", [ADMIN, {"x-api-key": KEY}], ids=["bearer", "x-api-key"])
def test_load_answers_with_the_model_and_what_it_replaced(
    server: Running, headers: dict[str, str]
) -> None:
    answer = server.client.post("/models/fake/load?version=2", headers=headers)
    assert answer.status_code == 200
    assert answer.json() == {
        "model": server.client.get("/models/fake").json(),
        "replaced": None,
        "opened": True,
    }
    assert answer.json()["model"]["version"] == 2
    newest = change(server, "/models/fake/load").json()
    assert (newest["model"]["version"], newest["replaced"]) == (3, "fake@2")
    again = change(server, "/models/fake/load").json()
    assert (again["replaced"], again["opened"]) == (None, False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/fake/load?version=2", b""),
        ("/models/fake/load", b'{"version": 2}'),
        ("/models/fake@2/load", b" {}\n"),
    ],
)
def test_version_may_stand_in_three_places(server: Running, path: str, body: bytes) -> None:
    answer = change(server, path, content=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["version"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/models/fake/load?version=0", b"", 400, "bad_parameter"),
        ("/models/fake/load?version=two", b"", 400, "bad_parameter"),
        ("/models/fake/load?version=", b"", 400, "bad_parameter"),
        ("/models/fake/load?version=99999999999", b"", 400, "bad_parameter"),
        ("/models/fake/load?vresion=2", b"", 400, "bad_parameter"),
        ("/models/fake/load?version=2", b'{"version": 2}', 400, "bad_parameter"),
        ("/models/fake@2/load?version=2", b"", 400, "bad_parameter"),
        ("/models/fake/load", b'{"version": "2"}', 400, "bad_parameter"),
        ("/models/fake/load", b'{"version": true}', 400, "bad_parameter"),
        ("/models/fake/load", b'{"version": 2.0}', 400, "bad_parameter"),
        ("/models/fake/load", b'{"name": "x"}', 400, "bad_parameter"),
        ("/models/fake/load", b"[2]", 400, "malformed_request"),
        ("/models/fake/load", b"\xff", 400, "malformed_request"),
        ("/models/fake/load", b"[" * 4000, 400, "malformed_request"),
        ("/models/fake/load", b" " * 5000, 413, "body_too_large"),
        ("/models/fake/load?version=9", b"", 404, "model_not_found"),
        ("/models/nobody/load", b"", 404, "model_not_found"),
        ("/models/.../load", b"", 404, "model_not_found"),
        ("/models/nobody/unload", b"", 404, "model_not_found"),
        ("/models/fake/unload", b"", 409, "model_needed"),
    ],
)
def test_mistakes_are_problems_and_change_nothing(
    server: Running, path: str, body: bytes, status: int, code: str
) -> None:
    answer = change(server, path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    [model] = server.client.get("/models").json()["models"]
    assert model["version"] == 1


def test_bad_version_is_told_everywhere_and_the_old_one_serves(
    server: Running, shelf: Shelf
) -> None:
    shelf.damage("fake@2")
    answer = change(server, "/models/fake/load?version=2")
    assert answer.status_code == 500
    assert answer.json()["code"] == "model_damaged"
    health = server.client.get("/health").json()
    assert health["failures"]["fake@2"] == answer.json()["detail"]
    assert health["ready"]
    assert server.client.get("/health/ready").status_code == 200
    assert [model["version"] for model in health["models"]] == [1]
    figures = server.client.get("/metrics").text
    assert 'ternaus_model_loads_total{name="fake",result="failed"} 1.0' in figures


def test_unload_answers_when_it_is_closed(server: Running, shelf: Shelf) -> None:
    assert change(server, "/models/other/load").status_code == 200
    assert change(server, "/models/other/unload").json() == {"unloaded": ["other@1"]}
    assert shelf.engine("other@1").closed
    assert server.client.get("/models/other").status_code == 404
    assert 'name="other"' not in server.client.get("/health").text


def test_client_that_leaves_does_not_stop_the_load(server: Running, shelf: Shelf) -> None:
    opening, go = threading.Event(), threading.Event()

    def held(spec: object) -> None:
        opening.set()
        assert go.wait(20)

    shelf.opening = held
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        head = f"POST /models/fake/load HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n"
        line.sendall(head.encode())
        assert opening.wait(20)
    go.set()
    for _ in range(2000):
        if server.client.get("/models/fake").json()["version"] == 3:
            return
    raise AssertionError("the load was given up")


def test_draining_server_refuses(server: Running) -> None:
    server.house.drain()
    for path in ("/models/fake/load", "/models/fake/unload"):
        answer = change(server, path)
        assert answer.status_code == 503
        assert answer.json()["code"] == "draining"
        assert int(answer.headers["retry-after"]) >= 1


def test_places_stand_in_openapi(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    load = document["paths"]["/models/{name}/load"]["post"]
    assert load["security"] == [{"admin": []}]
    assert {p["name"]: p["in"] for p in load["parameters"]} == {"name": "path", "version": "query"}
    assert {"200", "400", "401", "404", "500", "503"} <= set(load["responses"])
    assert document["components"]["securitySchemes"]["admin"]["scheme"] == "bearer"
    assert "409" in document["paths"]["/models/{name}/unload"]["post"]["responses"]


def test_key_is_shown_nowhere(server: Running) -> None:
    for path in ("/health", "/models", "/openapi.json", "/metrics", "/"):
        assert KEY not in server.client.get(path).text
        assert json.dumps(KEY) not in server.client.get(path).text
