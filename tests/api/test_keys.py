"""API keys: asked for everywhere but at probes and at what tells of the interface, before the body
is read, and never told to anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api.keys import Keys
from app.client import Client
from app.errors import KeyRequired, SettingsError
from app.settings import Settings
from app.training.segmenters import HttpSegmenter
from tests.api.lines import connected, head
from tests.server import Running, encoded, picture, running

KEY = "first-key-0123456789"
OTHER = "second-key-987654321"
ADMIN = "admin-key-5555555555"
OPEN = ["/health/live", "/health/ready", "/", "/docs", "/docs/swagger-ui.css", "/openapi.json"]
LOCKED = ["/health", "/metrics", "/models", "/models/fake", "/segment", "/nowhere", "/docs-of"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("store")
    (folder / "keys").write_text(f"{OTHER}\n\n  third-key-42424242  \n")
    with running(folder, api_keys=KEY, api_keys_file=folder / "keys", admin_key=ADMIN) as found:
        yield found


@pytest.mark.parametrize("path", LOCKED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"x-api-key": ""},
        {"x-api-key": f"{KEY},{OTHER}"},
    ],
)
def test_nothing_without_a_key(server: Running, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = server.client.request(method, path, headers=headers)
        assert answer.status_code == 401, f"{method} {path}"
        assert answer.json()["code"] == "key_required"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert KEY not in answer.text


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_the_interface_need_none(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200


@pytest.mark.parametrize("key", [KEY, OTHER, "third-key-42424242", ADMIN])
def test_each_key_opens(server: Running, key: str) -> None:
    for headers in ({"authorization": f"bearer {key}"}, {"x-api-key": key}):
        assert server.client.get("/metrics", headers=headers).status_code == 200
        assert server.client.get("/nowhere", headers=headers).status_code == 404
        answer = server.client.post("/segment", content=encoded(picture()), headers=headers)
        assert answer.status_code == 200


def test_refused_before_the_body_is_read(server: Running) -> None:
    with connected(server) as raw:
        raw.send(head(50_000_000, "Expect: 100-continue"))
        body = raw.problem()
        assert (body["status"], body["code"]) == (401, "key_required")
    assert server.house.admission.requests == 0


def test_keys_are_told_nowhere(server: Running) -> None:
    headers = {"x-api-key": KEY}
    seen = server.client.get("/health", headers=headers).text
    seen += server.client.get("/metrics", headers=headers).text
    seen += server.client.get("/openapi.json").text
    seen += repr(Settings.read(api_keys=KEY, admin_key=ADMIN, api_key=OTHER))
    for key in (KEY, OTHER, ADMIN):
        assert key not in seen
    settings = json.loads(server.client.get("/health", headers=headers).text)["settings"]
    assert not [name for name in settings if "key" in name]


def test_refusals_are_counted(server: Running) -> None:
    server.client.post("/segment")
    text = server.client.get("/metrics", headers={"x-api-key": KEY}).text
    assert 'ternaus_requests_total{code="401",reason="key_required",route="/segment"}' in text


def test_openapi_states_the_scheme(server: Running, tmp_path: Path) -> None:
    document = server.client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert document["paths"]["/segment"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "401" in document["paths"]["/metrics"]["get"]["responses"]
    assert "security" not in document["paths"]["/health/live"]["get"]
    with running(tmp_path) as unlocked:
        plain = unlocked.client.get("/openapi.json").json()
        assert "securitySchemes" not in plain["components"]
        assert unlocked.client.get("/metrics").status_code == 200


def test_client_sends_its_key(server: Running) -> None:
    with Client(server.url, key=OTHER) as client:
        assert client.segment(encoded(picture())).model == "fake@1"
    with Client(server.url) as client, pytest.raises(KeyRequired):
        client.segment(encoded(picture()))


def test_evaluation_sends_its_key(server: Running) -> None:
    segmenter = HttpSegmenter(server.url, "fake", key=KEY)
    assert segmenter.model.label == "fake@1"
    segmenter._client.close()


def test_admin_key_alone_locks_nothing(tmp_path: Path) -> None:
    with running(tmp_path, admin_key=ADMIN) as server:
        assert server.post(encoded(picture())).status_code == 200


def test_every_key_is_compared_as_bytes() -> None:
    keys = Keys(["schlüssel", "b"])
    assert keys.known({b"x-api-key": "schlüssel".encode()})
    assert not keys.known({b"x-api-key": b"\xff\xfe"})
    assert not keys.known({})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_keys": " , "}, "TERNAUS_API_KEYS"),
        ({"api_keys_file": "no/such/file"}, "TERNAUS_API_KEYS_FILE"),
        ({"api_keys_file": "."}, "TERNAUS_API_KEYS_FILE"),
        ({"admin_key_file": "no/such/file"}, "TERNAUS_ADMIN_KEY_FILE"),
        ({"api_key": "secret-of-a-client"}, "TERNAUS_API_KEYS"),
    ],
)
def test_door_never_stands_open_by_mistake(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as found, running(tmp_path, **values):
        pass
    assert "secret" not in str(found.value)


def test_file_of_keys_without_any_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n \n")
    for name in ("api_keys_file", "admin_key_file"):
        values: dict[str, Any] = {name: tmp_path / "keys"}
        with pytest.raises(SettingsError, match="no key"), running(tmp_path, **values):
            pass


def test_wrong_secret_is_not_repeated_in_the_message() -> None:
    with pytest.raises(SettingsError, match="TERNAUS_API_KEYS") as found:
        Settings.read(api_keys=["very", "secret"])
    assert "very" not in str(found.value)
    assert found.value.__cause__ is None
