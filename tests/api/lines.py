"""Raw sockets to a real server: what no decent client would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.server import Running

PATIENCE = 20.0


class Raw:
    """A connection and the bytes that came over it."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self._left = b""

    def send(self, data: bytes) -> None:
        self.line.sendall(data)

    def until_closed(self) -> bytes:
        """Everything until the server ends the connection; a reset is an end as well."""
        found = self._left
        self._left = b""
        try:
            while more := self.line.recv(65536):
                found += more
        except ConnectionResetError:
            pass
        return found

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of the next answer."""
        data = self._left
        while b"\r\n\r\n" not in data:
            more = self.line.recv(65536)
            assert more, f"closed after {data!r}"
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
        length = int(headers["content-length"])
        while len(body) < length:
            more = self.line.recv(65536)
            assert more, "closed in the middle of a body"
            body += more
        self._left = body[length:]
        return int(first.split(" ")[1]), headers, body[:length]

    def problem(self) -> dict[str, Any]:
        """The problem document of the next answer."""
        status, headers, body = self.answer()
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-content-type-options"] == "nosniff"
        found: dict[str, Any] = json.loads(body)
        assert found["status"] == status
        return found


@contextmanager
def connected(server: Running, *, receive_buffer: int | None = None) -> Iterator[Raw]:
    """A connection to the server."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as line:
        if receive_buffer is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        line.settimeout(PATIENCE)
        line.connect((host, int(port)))
        yield Raw(line)


def head(body: int | None = None, *headers: str, path: str = "/segment") -> bytes:
    """The head of a POST that announces `body` bytes, or of a GET."""
    lines = ["GET" if body is None else "POST"]
    lines[0] += f" {path} HTTP/1.1"
    lines += ["Host: x", *headers]
    if body is not None:
        lines.append(f"Content-Length: {body}")
    return "\r\n".join([*lines, "", ""]).encode()


def eventually(true: Callable[[], bool], words: str) -> None:
    """Wait until `true`."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, words
        time.sleep(0.005)
