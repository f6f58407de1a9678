"""FastAPI with the batch that everybody writes: a queue, a task that waits a moment, one thread.

python -m benchmarks.peer_servers.batched_fastapi
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, File, HTTPException, Response
from numpy.typing import NDArray

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net, decoded, encoded

WINDOW_S = 0.01

Waiting = tuple[NDArray[np.uint8], asyncio.Future[NDArray[np.bool_]]]


def application(asked: Asked) -> FastAPI:
    net = Net(asked.model, fast=asked.fast)
    queue: asyncio.Queue[Waiting] = asyncio.Queue()
    places = asyncio.Semaphore(asked.limit or 1_000_000)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            until = loop.time() + WINDOW_S
            while len(batch) < asked.batch:
                try:
                    batch.append(await asyncio.wait_for(queue.get(), until - loop.time()))
                except TimeoutError:
                    break
            try:
                masks = await asyncio.to_thread(net.segment, [picture for picture, _ in batch])
            except Exception as exc:  # whoever waits must hear of it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(exc)
                continue
            for (_, answer), mask in zip(batch, masks, strict=True):
                if not answer.done():
                    answer.set_result(mask)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/segment")
    async def segment(file: Annotated[bytes, File()]) -> Response:
        if places.locked():
            raise HTTPException(503, "too many requests", {"Retry-After": "1"})
        async with places:
            try:
                picture = await asyncio.to_thread(decoded, file)
            except (OSError, ValueError) as exc:
                raise HTTPException(422, "not a picture") from exc
            answer: asyncio.Future[NDArray[np.bool_]] = asyncio.get_running_loop().create_future()
            queue.put_nowait((picture, answer))
            try:
                mask = await asyncio.wait_for(answer, asked.timeout_s)
            except TimeoutError as exc:
                raise HTTPException(504, "too late") from exc
            return Response(await asyncio.to_thread(encoded, mask), media_type="image/png")

    return app


if __name__ == "__main__":
    asked = Asked.read()
    uvicorn.run(application(asked), host="127.0.0.1", port=asked.port, access_log=False)
