"""FastAPI as its tutorial has it: a plain `def` handler, which runs on a thread of the pool.

    python -m benchmarks.peer_servers.plain_fastapi

`limit` is a count in the handler's door: FastAPI has no bound of its own, and uvicorn's
`limit_concurrency` counts idle connections too.
"""

from __future__ import annotations

import threading
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, HTTPException, Response

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net, decoded, encoded


def application(asked: Asked) -> FastAPI:
    net = Net(asked.model, fast=asked.fast)
    places = threading.Semaphore(asked.limit or 1_000_000)
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/segment")
    def segment(file: Annotated[bytes, File()]) -> Response:
        if not places.acquire(blocking=False):
            raise HTTPException(503, "too many requests", {"Retry-After": "1"})
        try:
            try:
                picture = decoded(file)
            except (OSError, ValueError) as exc:
                raise HTTPException(422, "not a picture") from exc
            return Response(encoded(net.segment([picture])[0]), media_type="image/png")
        finally:
            places.release()

    return app


if __name__ == "__main__":
    asked = Asked.read()
    uvicorn.run(application(asked), host="127.0.0.1", port=asked.port, access_log=False)
