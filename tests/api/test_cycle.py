"""What goes over the wire is what uvicorn's own protocol sends, byte for byte; in fewer pieces."""

from __future__ import annotations

import hashlib
import itertools
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from app.api.connections import Line
from tests.api.lines import PATIENCE, Raw, eventually

TEXT = (b"content-type", b"text/plain")


def start(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sized(data: bytes, *headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    return [start(200, TEXT, (b"content-length", b"%d" % len(data)), *headers), body(data)]


LENGTH_5 = (b"content-length", b"5")
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "/plain": sized(b"hello"),
    "/empty": sized(b""),
    "/large": sized(bytes(300_000)),
    "/tab": sized(b"hello", (b"x-note", b"a\tb")),
    "/latin": sized(b"hello", (b"x-note", "ö".encode("latin-1"))),
    "/capitals": [start(200, (b"Content-Length", b"5")), body(b"hello")],
    "/close": sized(b"hello", (b"connection", b"close")),
    "/close-in-capitals": sized(b"hello", (b"Connection", b"Close")),
    "/chunked": [start(200, TEXT), body(b"hello")],
    "/chunked-by-name": [start(200, (b"transfer-encoding", b"chunked")), body(b"hello")],
    "/in-parts": [start(200, LENGTH_5), body(b"he", True), body(b"llo")],
    "/in-chunks": [start(200), body(b"he", True), body(b"", True), body(b"llo")],
    "/nothing": [start(204)],
    "/nothing-said": [start(204), body(b"")],
    "/not-modified": [start(304, (b"etag", b'"a"')), body(b"")],
    "/without-headers": [{"type": "http.response.start", "status": 200}, body(b"hello")],
    # Mistakes.
    "/split": sized(b"hello", (b"x-note", b"a\r\nset-cookie: b")),
    "/newline": sized(b"hello", (b"x-note", b"a\nb")),
    "/control": sized(b"hello", (b"x-note", b"a\x00b")),
    "/split-name": sized(b"hello", (b"x\r\ny", b"a")),
    "/body-first": [body(b"hello")],
    "/twice": [*sized(b"hello"), *sized(b"hello")],
    "/silent": [],
}
UNFIT = ("/split", "/newline", "/control", "/split-name")
# After these the connection is closed. Nothing may lie unread in it then: the kernel would send a
# reset, which takes what the client has not read yet.
LAST_ONES = (*UNFIT, "/close", "/close-in-capitals", "/nothing", "/body-first", "/twice", "/silent")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers as `ANSWERS` has it; `/digest` says what was posted."""
    assert scope["type"] == "http"
    if scope["path"] == "/digest":
        parts = []
        while (message := await receive())["type"] == "http.request":
            parts.append(message["body"])
            if not message["more_body"]:
                break
        for message in sized(hashlib.sha256(b"".join(parts)).hexdigest().encode()):
            await send(message)
    elif scope["path"] == "/breaks":
        await send(start(200, LENGTH_5))
        raise ValueError("on purpose")
    else:
        for message in ANSWERS[scope["path"]]:
            await send(message)


@contextmanager
def served(http: Any) -> Iterator[tuple[str, int]]:
    """The application behind a protocol."""
    config = uvicorn.Config(
        app, port=0, http=http, lifespan="off", log_level="critical", date_header=False, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "the server did not start")
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Ours, and uvicorn's own."""
    with served(Line()) as ours, served("httptools") as theirs:
        yield ours, theirs


def said(place: tuple[str, int], *pieces: bytes) -> bytes:
    """Everything that a server answers to these bytes, until it closes the connection."""
    with socket.create_connection(place, PATIENCE) as line:
        for piece in pieces:
            line.sendall(piece)
        return Raw(line).until_closed()


LAST = b"GET /plain HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("path", list(ANSWERS))
def test_answers_are_those_of_uvicorn(
    both: tuple[tuple[str, int], tuple[str, int]], path: str
) -> None:
    for method, version in (("GET", "1.1"), ("HEAD", "1.1"), ("GET", "1.0")):
        asked = f"{method} {path} HTTP/{version}\r\nhost: x\r\n\r\n".encode()
        last = b"" if version == "1.0" or path in LAST_ONES else LAST
        ours, theirs = (said(place, asked + last) for place in both)
        # A header that no client could take for what it is: the connection ends without a word.
        assert theirs.startswith(b"HTTP/1.1 ") or path in UNFIT
        if path == "/nothing" and ours != theirs:
            # A head whose body never comes, from an application that has ended: uvicorn sends it
            # and closes. Ours has sent nothing yet, and can say that something broke.
            assert ours.startswith(b"HTTP/1.1 500 ")
            continue
        assert ours == theirs


def test_what_breaks_before_its_body_is_told(
    both: tuple[tuple[str, int], tuple[str, int]],
) -> None:
    ours, theirs = (said(place, b"GET /breaks HTTP/1.1\r\nhost: x\r\n\r\n") for place in both)
    # ASGI lets a server wait with the head for the body. Uvicorn does not, and cannot take it back.
    assert ours.startswith(b"HTTP/1.1 500 ")
    assert theirs.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000, 3_000_000])
def test_bodies_arrive_whole_however_they_come(
    both: tuple[tuple[str, int], tuple[str, int]], size: int
) -> None:
    data = bytes(i * i % 251 for i in range(1000)) * (size // 1000 + 1)
    data = data[:size]
    asked = b"POST /digest HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
    whole = asked + data
    cuts = sorted({0, len(asked) - 1, len(asked), len(asked) + size // 3, len(whole)})
    in_parts = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    digest = hashlib.sha256(data).hexdigest().encode()
    for place in both:
        for pieces, times in (([whole], 1), (in_parts, 1), ([whole + whole], 2)):
            found = said(place, *pieces, LAST)
            assert re.findall(rb"[0-9a-f]{64}", found) == [digest] * times


def test_an_answer_is_one_piece(both: tuple[tuple[str, int], tuple[str, int]]) -> None:
    ours, _ = both
    with socket.create_connection(ours, PATIENCE) as line:
        for _ in range(20):
            line.sendall(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n")
            assert line.recv(65536).endswith(b"hello")
