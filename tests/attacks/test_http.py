"""Whatever comes over the line, the server answers with an error of its own and goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from app.errors import by_code
from tests.server import Running, encoded, picture, running

KNOWN = set(by_code())
CALM = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store"), body_timeout_s=0.5) as found:
        yield found
        answer = found.post(encoded(picture()))
        assert answer.status_code == 200, "the server did not survive"
        assert found.house.admission.requests == 0
        assert found.house.admission.bytes == 0
        assert found.house.admission.pixels == 0


def check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] in KNOWN, answer.text


@CALM
@given(body=st.binary(max_size=2000), content_type=st.sampled_from(["", "image/jpeg", "text/html"]))
def test_any_body(server: Running, body: bytes, content_type: str) -> None:
    check(server.post(body, content_type=content_type))


@CALM
@given(cut=st.integers(0, 3000), place=st.integers(0, 3000), value=st.integers(0, 255))
def test_damaged_pictures(server: Running, cut: int, place: int, value: int) -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    data[place % len(data)] = value
    check(server.post(bytes(data[: len(data) - cut % len(data)])))


@CALM
@given(
    query=st.dictionaries(
        st.sampled_from(["format", "model", "threshold", "frame", "background", "x"]),
        st.text(max_size=20),
        max_size=4,
    )
)
def test_any_query(server: Running, query: dict[str, str]) -> None:
    check(server.client.post("/segment", content=encoded(picture()), params=query))


@CALM
@given(body=st.binary(max_size=500), boundary=st.sampled_from(["x", "-", "a" * 70, ""]))
def test_any_form(server: Running, body: bytes, boundary: str) -> None:
    wrapped = b"--" + boundary.encode() + b"\r\n" + body
    check(server.post(wrapped, content_type=f"multipart/form-data; boundary={boundary}"))


@pytest.mark.parametrize(
    "line",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_broken_http(server: Running, line: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert server.client.get("/health/live").status_code == 200


def test_openapi_is_kept(server: Running) -> None:
    """schemathesis reads the OpenAPI document and looks for answers that it does not allow."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    assert len(operations) == len(found)
    assert {"/segment", "/health", "/models"} <= {operation.path for operation in operations}
    for operation in operations:

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def run(case: schemathesis.Case[Any]) -> None:
            response = case.call(timeout=30)
            # A deadline of a millisecond is allowed, and so is missing it.
            assert response.status_code < 500 or response.status_code == 504, response.text
            declared = case.operation.definition.raw["responses"]
            assert str(response.status_code) in declared or response.status_code in (404, 405)

        run()
