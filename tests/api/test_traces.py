"""`traceparent` and `tracestate`, against the words of W3C Trace Context, level 1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.api.traces import Trace, trace_of
from tests.server import Running, encoded, picture, running

ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{ID}-{PARENT}-01"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (VALID, "01"),
        (f"00-{ID}-{PARENT}-00", "00"),
        (f" {VALID}\t", "01"),
        (f"cc-{ID}-{PARENT}-01", "01"),
        (f"cc-{ID}-{PARENT}-ff-what-the-future-brings", "01"),
    ],
)
def test_valid(value: str, flags: str) -> None:
    assert trace_of([(b"traceparent", value.encode())]) == Trace(ID, PARENT, flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        VALID[:-1],
        VALID + "0",
        VALID + "-more",
        f"ff-{ID}-{PARENT}-01",
        f"cc-{ID}-{PARENT}-01.more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID.upper()}-{PARENT}-01",
        f"00-{ID[:-1]}g-{PARENT}-01",
        f"0x-{ID}-{PARENT}-01",
        VALID.replace("-", "_"),
    ],
)
def test_invalid_is_ignored(server: Running, value: str) -> None:
    assert trace_of([(b"traceparent", value.encode())]) is None
    answer = server.post(encoded(picture()), traceparent=value, tracestate="a=1")
    assert answer.status_code == 200
    assert "traceparent" not in answer.headers
    assert "tracestate" not in answer.headers


def test_two_parents_are_none_and_several_states_are_one() -> None:
    parent = (b"traceparent", VALID.encode())
    assert trace_of([parent, parent]) is None
    found = trace_of([parent, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert found is not None
    assert found.state == "a=1,b=2"
    long = trace_of([parent, (b"tracestate", b"a=" + b"x" * 3000)])
    assert long is not None
    assert long.state == ""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/segment", 415), ("GET", "/nowhere", 404), ("GET", "/models/nobody", 404)],
)
def test_errors_and_answers_say_which_trace(
    server: Running, method: str, path: str, status: int
) -> None:
    headers = {"traceparent": VALID, "tracestate": "vendor=1", "x-request-id": "mine"}
    answer = server.client.request(method, path, content=b"hello", headers=headers)
    assert answer.status_code == status
    assert answer.json()["trace_id"] == ID
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"
    assert answer.headers["traceparent"] == VALID
    assert answer.headers["tracestate"] == "vendor=1"
    plain = server.client.request(method, path, content=b"hello")
    assert "trace_id" not in plain.json()
    assert "traceparent" not in plain.headers
