"""A small client: a picture in, a mask out, and the server's own errors.

    with Client("http://localhost:8000") as client:
        mask = client.segment(Path("roof.jpg")).content             # a PNG
        found = client.segment(Path("roof.jpg"), format="rle").json()

Refusals for overload carry the time after which it is worth coming back; the client waits for it
and tries again while its own patience lasts. Anything else is raised at once, as the class that the
server raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from app.errors import DeadlineExceeded, TernausError, Unavailable, by_code


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes of a mask, with what the server said of them."""

    content: bytes
    media_type: str
    model: str
    request_id: str
    timings_ms: Mapping[str, float]

    def json(self) -> Any:
        """The content of a JSON format."""
        return json.loads(self.content)


class Client:
    """Talks to one server (or balancer). Not for several threads at once.

    `patience_s` bounds a call, retries included; `key` is an API key, where the server wants one;
    `transport`, `sleep` and `clock` are for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = 60.0,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = httpx.Client(
            base_url=url,
            timeout=patience_s,
            transport=transport,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        self._patience = patience_s
        self._sleep = sleep
        self._clock = clock

    def segment(
        self,
        picture: bytes | Path,
        *,
        format: str = "png",
        model: str | None = None,
        threshold: float | None = None,
        frame: int | None = None,
        background: str | None = None,
        request_id: str | None = None,
    ) -> Reply:
        """The mask of a picture. Raises the server's error, or DeadlineExceeded out of patience."""
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        asked = {
            "format": format,
            "model": model,
            "threshold": threshold,
            "frame": frame,
            "background": background,
        }
        query = {name: str(value) for name, value in asked.items() if value is not None}
        until = self._clock() + self._patience
        while True:
            left = until - self._clock()
            if left <= 0:
                raise DeadlineExceeded("the patience of the client ran out", stage="client")
            headers = {"x-request-timeout-ms": str(max(1, round(left * 1000)))}
            if request_id is not None:
                headers["x-request-id"] = request_id
            try:
                response = self._http.post(
                    "/segment", content=data, params=query, headers=headers, timeout=left
                )
            except httpx.TimeoutException as exc:
                raise DeadlineExceeded(
                    "the patience of the client ran out", stage="client"
                ) from exc
            if response.status_code == 200:
                return _reply(response)
            error = error_of(response)
            if not isinstance(error, Unavailable) or until - self._clock() < error.retry_after_s:
                raise error
            self._sleep(error.retry_after_s)

    def models(self) -> list[dict[str, Any]]:
        """The open models."""
        return list(self._get("/models")["models"])

    def health(self) -> dict[str, Any]:
        """What `/health` says."""
        return self._get("/health")

    def _get(self, path: str) -> dict[str, Any]:
        response = self._http.get(path)
        if response.status_code != 200:
            raise error_of(response)
        found: dict[str, Any] = response.json()
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def error_of(response: httpx.Response) -> TernausError:
    """The error that a problem document tells of, as the class that the server raised."""
    try:
        body = response.json()
        code, detail = body["code"], body["detail"]
    except (ValueError, KeyError, TypeError):
        # A balancer's own page, say: no problem document of ours.
        return TernausError(f"the server answered {response.status_code} without saying why")
    error = by_code().get(code, TernausError)
    rest: dict[str, Any] = {n: body[n] for n in ("limit", "limit_value") if n in body}
    if issubclass(error, Unavailable):
        rest["retry_after_s"] = body.get("retry_after_ms", 1000) / 1000
    if issubclass(error, DeadlineExceeded):
        rest["stage"] = body.get("stage", "unknown")
    return error(detail, **rest)


def _reply(response: httpx.Response) -> Reply:
    timings = {}
    for part in response.headers.get("server-timing", "").split(", "):
        name, _, duration = part.partition(";dur=")
        if duration:
            timings[name] = float(duration)
    return Reply(
        content=response.content,
        media_type=response.headers.get("content-type", ""),
        model=response.headers.get("x-model", ""),
        request_id=response.headers.get("x-request-id", ""),
        timings_ms=timings,
    )
