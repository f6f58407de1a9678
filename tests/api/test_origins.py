"""CORS: off unless origins are named; then for these alone, with what our answers carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import Settings
from tests.server import encoded, picture, running

HERE, THERE = "https://maps.example", "https://elsewhere.example"
ASKS = {"access-control-request-method": "POST"}


def test_off_by_default(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        answer = server.post(encoded(picture()), origin=HERE)
        asked = server.client.options("/segment", headers={"origin": HERE, **ASKS})
        for found in (answer, asked):
            assert not [name for name in found.headers if name.startswith("access-control")]
        assert asked.status_code == 405


def test_named_origins_alone(tmp_path: Path) -> None:
    with running(tmp_path, cors_origins=f"{HERE}, http://localhost:5173") as server:
        answer = server.post(encoded(picture()), origin=HERE)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == HERE
        exposed = {n.strip() for n in answer.headers["access-control-expose-headers"].split(",")}
        assert {"X-Model", "Server-Timing", "Retry-After", "X-Request-Id"} <= exposed
        assert "access-control-allow-credentials" not in answer.headers
        other = server.post(encoded(picture()), origin=THERE)
        assert "access-control-allow-origin" not in other.headers
        wrong = server.post(b"hello", origin=HERE)
        assert wrong.status_code == 415
        assert wrong.headers["access-control-allow-origin"] == HERE


def test_browsers_ask_for_leave_without_a_key(tmp_path: Path) -> None:
    with running(tmp_path, cors_origins=HERE, api_keys="a-key") as server:
        headers = {**ASKS, "access-control-request-headers": "authorization,x-request-id"}
        asked = server.client.options("/segment", headers={"origin": HERE, **headers})
        assert asked.status_code == 200
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        refused = server.client.options("/segment", headers={"origin": THERE, **headers})
        assert refused.status_code == 400
        answer = server.post(encoded(picture()), origin=HERE)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == HERE, "a page could not see why"


@pytest.mark.parametrize(
    "value", ["https://a.example/", "a.example", "https://a.example/x", "null"]
)
def test_what_is_no_origin_is_an_error(value: str) -> None:
    with pytest.raises(SettingsError, match="TERNAUS_CORS_ORIGINS"):
        Settings.read(cors_origins=value)
