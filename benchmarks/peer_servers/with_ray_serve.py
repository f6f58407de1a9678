"""Ray Serve: one replica with every core, `serve.batch` before the net.

python -m benchmarks.peer_servers.with_ray_serve
"""

from __future__ import annotations

import asyncio
import os

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net, decoded, encoded

ASKED = Asked.read()
CORES = len(os.sched_getaffinity(0))


class Segmentation:
    def __init__(self) -> None:
        self.net = Net(ASKED.model, fast=ASKED.fast)

    @serve.batch(max_batch_size=ASKED.batch, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def segment(self, pictures: list[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        return await asyncio.to_thread(self.net.segment, pictures)

    async def __call__(self, request: Request) -> Response:
        try:
            picture = await asyncio.to_thread(decoded, await request.body())
        except (OSError, ValueError):
            return Response("not a picture", status_code=422)
        mask = await self.segment(picture)
        return Response(await asyncio.to_thread(encoded, mask), media_type="image/png")


def main() -> None:
    # Ray gives an actor as many threads as cores were asked for, and one where none were.
    deployment = serve.deployment(Segmentation).options(
        num_replicas=1,
        max_ongoing_requests=ASKED.limit or 64,
        max_queued_requests=1 if ASKED.limit else -1,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        ray_actor_options={"num_cpus": CORES},
    )
    ray.init(include_dashboard=False, log_to_driver=True)
    options = HTTPOptions(host="127.0.0.1", port=ASKED.port, request_timeout_s=ASKED.timeout_s)
    serve.start(http_options=options)
    serve.run(deployment.bind(), route_prefix="/segment", blocking=True)


if __name__ == "__main__":
    main()
