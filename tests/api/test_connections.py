"""Connections over raw sockets: every wait ends, everything that grows is bounded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.lines import PATIENCE, Raw, connected, eventually, head
from tests.fakes import FakeEngine
from tests.server import Running, encoded, picture, running, sampled


def serving(**settings: Any) -> Any:
    """A fixture: a server with these settings, for all tests here."""

    @pytest.fixture(scope="module")
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
        with running(tmp_path_factory.mktemp("store"), **settings) as found:
            yield found

    return fixture


server = serving(max_url_bytes=200, max_header_bytes=1000, max_headers=20)
# Its patience is short.
hasty = serving(header_timeout_s=0.3, body_timeout_s=0.3, request_timeout_s=2.0)


def cut(server: Running) -> dict[str, float]:
    """Connections cut off so far, by why."""
    families = text_string_to_metric_families(server.house.metrics.render().decode())
    return {
        sample.labels["reason"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "ternaus_connections_cut_total"
    }


def connections(server: Running) -> int:
    return len(server.server.server_state.connections)


def test_long_address_is_414(server: Running) -> None:
    with connected(server) as raw:
        raw.send(head(path="/segment?" + "a" * 200))
        body = raw.problem()
        assert (body["status"], body["code"]) == (414, "url_too_long")
        assert (body["limit"], body["limit_value"]) == ("TERNAUS_MAX_URL_BYTES", 200)
        assert raw.until_closed() == b""
    assert server.client.get("/segment?" + "a" * 190).status_code == 405


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        (["X-Long: " + "a" * 1000], "TERNAUS_MAX_HEADER_BYTES"),
        (["X-" + "a" * 1000 + ": b"], "TERNAUS_MAX_HEADER_BYTES"),
        ([f"X-{i}: {'a' * 100}" for i in range(10)], "TERNAUS_MAX_HEADER_BYTES"),
        ([f"X-{i}: a" for i in range(20)], "TERNAUS_MAX_HEADERS"),
    ],
)
def test_too_many_or_too_large_headers_are_431(
    server: Running, lines: list[str], limit: str
) -> None:
    with connected(server) as raw:
        raw.send(head(None, *lines, path="/health/live"))
        body = raw.problem()
        assert (body["status"], body["code"], body["limit"]) == (431, "headers_too_large", limit)
        assert raw.until_closed() == b""
    with connected(server) as raw:
        raw.send(head(None, *(f"X-{i}: a" for i in range(18)), path="/health/live"))
        assert raw.answer()[0] == 200


def test_header_without_an_end_is_not_kept(server: Running) -> None:
    """The parser reports a header only when it is whole; its bytes are counted as they come."""
    with connected(server) as raw:
        raw.send(b"GET / HTTP/1.1\r\nX-Endless: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                raw.send(b"a" * 1000)
                if cut(server).get("headers_too_large", 0) > 4:
                    break
        assert raw.problem()["code"] == "headers_too_large"


def test_limits_hold_for_each_request_of_a_connection(server: Running) -> None:
    data = encoded(picture())
    with connected(server) as raw:
        for _ in range(5):
            raw.send(head(len(data), "X-Half: " + "a" * 500) + data)
            assert raw.answer()[0] == 200
        raw.send(head(None, "X-Long: " + "a" * 1000))
        assert raw.problem()["code"] == "headers_too_large"


def test_requests_in_one_piece_are_answered_in_turn(server: Running) -> None:
    data = encoded(picture())
    with connected(server) as raw:
        piece = head(len(data)) + data + head(path="/health/live") + head(len(data)) + data
        raw.send(piece + head(path="/health/ready")[:10])
        assert [raw.answer()[0] for _ in range(3)] == [200, 200, 200]
        raw.send(head(path="/health/ready")[10:])
        assert raw.answer()[0] == 200


@pytest.mark.parametrize(
    "line", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_is_told_so(server: Running, line: bytes) -> None:
    with connected(server) as raw:
        raw.send(line)
        assert raw.problem()["code"] == "malformed_request"


def test_broken_body_is_told_and_its_place_is_free_again(server: Running) -> None:
    with connected(server) as raw:
        raw.send(b"POST /segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.send(b"4\r\nabcd\r\n")
        eventually(lambda: server.house.admission.requests == 1, "the request did not begin")
        raw.send(b"no number\r\n")
        assert raw.problem()["code"] == "malformed_request"
        assert raw.until_closed() == b""
    eventually(lambda: server.house.admission.requests == 0, "the request still holds its place")


def test_headers_byte_by_byte_are_cut_off(hasty: Running) -> None:
    """Slow loris: each byte comes soon enough, the whole never does."""
    with connected(hasty) as raw:
        before = cut(hasty).get("headers_too_slow", 0)
        raw.send(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            while cut(hasty).get("headers_too_slow", 0) == before:
                raw.send(b"X-A: b\r\n")
                time.sleep(0.01)
        body = raw.problem()
        assert (body["status"], body["code"]) == (408, "headers_too_slow")
        assert body["limit"] == "TERNAUS_HEADER_TIMEOUT_S"
        assert raw.until_closed() == b""


def test_second_request_in_pieces_is_cut_off_too(hasty: Running) -> None:
    with connected(hasty) as raw:
        raw.send(head(path="/health/live"))
        assert raw.answer()[0] == 200
        raw.send(head(path="/health/live")[:20])
        assert raw.problem()["code"] == "headers_too_slow"


@pytest.mark.parametrize("first", [b"", b"\r\n"])
def test_connection_that_asks_nothing_is_closed(hasty: Running, first: bytes) -> None:
    with connected(hasty) as raw:
        raw.send(first)
        assert raw.until_closed() == b""


def test_empty_lines_do_not_hold_a_connection(hasty: Running) -> None:
    with connected(hasty) as raw:
        raw.send(head(path="/health/live"))
        assert raw.answer()[0] == 200
        before = cut(hasty).get("silent", 0)
        with contextlib.suppress(ConnectionError):
            while cut(hasty).get("silent", 0) == before:
                raw.send(b"\r\n")
                time.sleep(0.01)
        assert raw.until_closed() == b""


def test_body_byte_by_byte_ends_with_the_deadline(hasty: Running) -> None:
    """Each byte comes within `body_timeout_s`; the request's own time ends it all the same."""
    with connected(hasty) as raw:
        raw.send(head(100_000, "X-Request-Timeout-Ms: 700"))
        eventually(lambda: hasty.house.admission.requests == 1, "the request did not begin")
        while hasty.house.admission.requests:
            raw.send(b"a")
            time.sleep(0.01)
        body = raw.problem()
        assert (body["status"], body["code"]) == (504, "deadline_exceeded")
        assert body["stage"] == "receive"


def test_rest_of_a_refused_body_is_not_awaited_for_ever(hasty: Running) -> None:
    with connected(hasty) as raw:
        before = cut(hasty).get("rest_of_body", 0)
        raw.send(head(1_000_000, "Content-Encoding: gzip"))
        assert raw.answer()[0] == 415
        with contextlib.suppress(ConnectionError):
            while cut(hasty).get("rest_of_body", 0) == before:
                raw.send(b"a")
                time.sleep(0.01)
        assert raw.until_closed() == b""


def test_refused_body_that_ends_in_time_leaves_the_connection_usable(hasty: Running) -> None:
    data = encoded(picture())
    with connected(hasty) as raw:
        raw.send(head(1000, "Content-Encoding: gzip"))
        assert raw.answer()[0] == 415
        raw.send(b"a" * 1000 + head(len(data)) + data)
        assert raw.answer()[0] == 200


def test_large_refused_body_that_ends_in_time_does_too(hasty: Running) -> None:
    data = encoded(picture())
    with connected(hasty) as raw:
        # More than is read before anybody has asked for it.
        raw.send(head(4_000_000, "Content-Encoding: gzip") + bytes(4_000_000))
        assert raw.answer()[0] == 415
        raw.send(head(len(data)) + data)
        assert raw.answer()[0] == 200


def not_taken(raw: Raw, side: int) -> None:
    """Ask for an answer of megabytes, and take none of it."""
    data = encoded(np.full((side, side, 3), 90, np.uint8))
    raw.send(head(len(data), path="/segment?format=npy") + data)


def test_answer_that_nobody_takes_is_thrown_away(tmp_path: Path) -> None:
    with running(tmp_path, send_timeout_s=0.3) as server:
        server.client.close()
        with connected(server, receive_buffer=4096) as raw:
            not_taken(raw, 4000)
            eventually(lambda: cut(server).get("answer_not_taken", 0) > 0, "it is still held")
            eventually(lambda: connections(server) == 0, "the connection is still there")
            assert len(raw.until_closed()) < 4000 * 4000


def test_answer_that_is_taken_in_time_is_whole(tmp_path: Path) -> None:
    with (
        running(tmp_path, send_timeout_s=PATIENCE) as server,
        connected(server, receive_buffer=4096) as raw,
    ):
        not_taken(raw, 2500)
        status, _, body = raw.answer()
        assert status == 200
        assert len(body) > 2500 * 2500
        raw.send(head(path="/health/live"))
        assert raw.answer()[0] == 200


def test_server_ends_although_an_answer_is_not_taken(tmp_path: Path) -> None:
    with (
        running(tmp_path, send_timeout_s=0.3) as server,
        connected(server, receive_buffer=4096) as raw,
    ):
        not_taken(raw, 4000)
        assert raw.line.recv(1)
        server.server.should_exit = True
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()


def test_surplus_connections_are_refused_but_probes_are_not(tmp_path: Path) -> None:
    held = contextlib.ExitStack()
    with running(tmp_path, max_connections=3) as server, held:
        server.client.close()
        eventually(lambda: connections(server) == 0, "a connection is still there")
        lines = [held.enter_context(connected(server)) for _ in range(3)]
        for raw in lines:
            raw.send(head(10_000))
        eventually(lambda: server.house.admission.requests == 3, "the requests did not begin")
        with connected(server) as raw:
            raw.send(head(path="/health/live"))
            status, headers, _ = raw.answer()
            assert (status, headers["connection"]) == (200, "close")
        with connected(server) as raw:
            raw.send(head(path="/health"))
            body = raw.problem()
            assert (body["status"], body["code"]) == (503, "too_many_connections")
            assert body["limit_value"] == 3
            assert raw.until_closed() == b""
        # Far beyond, nothing is said any more.
        flood = [held.enter_context(connected(server)) for _ in range(8)]
        assert flood[-1].until_closed() == b""
        assert cut(server)["too_many"] >= 1


def test_idle_connections_make_room(tmp_path: Path) -> None:
    held = contextlib.ExitStack()
    with running(tmp_path, max_connections=3) as server, held:
        server.client.close()
        eventually(lambda: connections(server) == 0, "a connection is still there")
        lines = [held.enter_context(connected(server)) for _ in range(3)]
        for raw in lines:
            raw.send(head(path="/health/live"))
            assert raw.answer()[0] == 200
        lines[0].send(head(path="/health/live"))
        assert lines[0].answer()[0] == 200  # so that the second is the one idle longest
        with connected(server) as raw:
            raw.send(head(path="/health"))
            assert raw.answer()[0] == 200
            assert lines[1].until_closed() == b""
            for other in (lines[0], lines[2]):
                other.send(head(path="/health"))
                assert other.answer()[0] == 200


def test_client_that_leaves_while_it_is_answered_hurts_nobody(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine, send_timeout_s=PATIENCE) as server:
        with connected(server, receive_buffer=4096) as raw:
            not_taken(raw, 3000)
            assert raw.line.recv(1)
        eventually(lambda: connections(server) <= 1, "the connection is still there")
        assert server.post(encoded(picture())).status_code == 200
