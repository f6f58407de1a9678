"""The pages for people and programs: whole without any foreign host."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

import httpx
import pytest

from app.encodings import base as encodings
from tests.server import Running, encoded, picture, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found


def test_documentation_needs_no_foreign_host(server: Running) -> None:
    page = server.client.get("/docs").text
    files = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(files) >= 3
    for file in files:
        assert file.startswith("/docs/"), f"/docs loads {file}"
        answer = server.client.get(file)
        assert answer.status_code == 200
        assert len(answer.content) > 100
    assert server.client.get("/docs/../pyproject.toml").status_code == 404
    assert server.client.get("/docs/index.html").status_code == 404


def test_openapi_lists_every_format_and_leads_with_the_main_thing(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    assert next(iter(document["paths"])) == "/segment"
    operation = document["paths"]["/segment"]["post"]
    [formats] = [p for p in operation["parameters"] if p["name"] == "format"]
    assert formats["schema"]["enum"] == list(encodings.registry())
    media = set(operation["responses"]["200"]["content"])
    assert media == {encoding.media_type for encoding in encodings.registry().values()}


def test_health_and_models_say_what_is_open(server: Running) -> None:
    health = server.client.get("/health").json()
    assert (health["state"], health["ready"], health["live"]) == ("idle", True, True)
    [model] = server.client.get("/models").json()["models"]
    assert (model["name"], model["version"], model["default"]) == ("fake", 1, True)
    assert server.client.get("/models/fake@1").json() == model
    assert server.client.get("/models/nobody").json()["code"] == "model_not_found"


def test_wrong_addresses_are_problems_too(server: Running) -> None:
    for method, path, status, code in [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("GET", "/segment", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ]:
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == code


def test_metrics_count_what_happened(server: Running) -> None:
    server.post(b"hello")
    text = server.client.get("/metrics").text
    line = 'ternaus_requests_total{code="415",reason="picture_unsupported",route="/segment"} 1.0'
    assert line in text
    assert "ternaus_ready 1.0" in text


def policy(answer: httpx.Response) -> dict[str, str]:
    """The content security policy of a page."""
    parts = answer.headers["content-security-policy"].split("; ")
    return {kind: sources for kind, _, sources in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_run_nothing_foreign_and_cannot_be_framed(server: Running, path: str) -> None:
    answer = server.client.get(path, headers={"accept": "text/html"})
    found = policy(answer)
    assert found["default-src"] == found["frame-ancestors"] == found["base-uri"] == "'none'"
    assert found.get("script-src", "'none'") in ("'none'", "'self'")
    assert "http" not in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    # Nothing in the page that its own policy forbids: no script but from files, no handlers.
    for attributes, script in re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL):
        assert "src=" in attributes
        assert not script.strip()
    assert not re.search(r"<[^>]+\son\w+=", answer.text)
    assert not re.search(r"<[^>]+\sstyle=", answer.text)
    for style in re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in found["style-src"]


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docs/start.js", "/openapi.json", "/health/live", "/metrics", "/no"]
)
def test_no_answer_is_guessed_at(server: Running, path: str) -> None:
    assert server.client.get(path).headers["x-content-type-options"] == "nosniff"


def test_masks_are_not_guessed_at(server: Running) -> None:
    for data in (encoded(picture()), b"hello"):
        assert server.post(data).headers["x-content-type-options"] == "nosniff"
