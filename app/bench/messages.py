"""Requests as bytes, made once before the clock runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import BadParameter

_BOUNDARY = b"ternaus-bench-7f3a51c09d2e"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: any server that takes a picture in a POST."""

    host: str
    port: int
    path: str
    secure: bool

    @classmethod
    def of(cls, url: str, *, path: str = "/segment", query: str = "") -> Target:
        """From `http://host:port`; `path` and `query` are taken where the URL has none of its own.

        Raises BadParameter for anything that is no HTTP address.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise BadParameter(f"`{url}` is not an address such as `http://localhost:8000`")
        secure = parts.scheme == "https"
        place = parts.path if parts.path not in ("", "/") else path
        return cls(
            host=parts.hostname,
            port=port or (443 if secure else 80),
            path=f"{place}?{parts.query or query}" if parts.query or query else place,
            secure=secure,
        )


def message(
    target: Target, picture: bytes, *, headers: Mapping[str, str] | None = None, form: bool = False
) -> bytes:
    """A whole request. `form`: the picture as the field `file` of a form, else as the raw body."""
    given = {"content-type": "application/octet-stream", **(headers or {})}
    body = picture
    if form:
        given["content-type"] = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
        body = b"".join(
            (
                b"--" + _BOUNDARY + b"\r\n",
                b'Content-Disposition: form-data; name="file"; filename="picture"\r\n',
                b"Content-Type: application/octet-stream\r\n\r\n",
                picture,
                b"\r\n--" + _BOUNDARY + b"--\r\n",
            )
        )
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"host: {target.host}:{target.port}",
        *(f"{name}: {value}" for name, value in given.items()),
        f"content-length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
