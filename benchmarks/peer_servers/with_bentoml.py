"""BentoML: a service for requests and one for the net, which batches adaptively.

python -m bentoml serve benchmarks.peer_servers.with_bentoml:Segmentation --port 3000
"""

from __future__ import annotations

import asyncio

import bentoml
import numpy as np
from bentoml.exceptions import InvalidArgument
from PIL import Image

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net

ASKED = Asked.read()
TRAFFIC = {"timeout": ASKED.timeout_s, "concurrency": ASKED.batch}
BOUND = {"max_concurrency": ASKED.limit} if ASKED.limit else {}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


@bentoml.service(workers=1, traffic=TRAFFIC)
class Batches:
    def __init__(self) -> None:
        self.net = Net(ASKED.model, fast=ASKED.fast)

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        max_batch_size=ASKED.batch,
        max_latency_ms=int(1000 * ASKED.timeout_s),
    )
    def segment(self, pictures: np.ndarray) -> np.ndarray:
        return self.net.batch(pictures)


@bentoml.service(traffic={**TRAFFIC, **BOUND})
class Segmentation:
    batches = bentoml.depends(Batches)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def segment(self, file: Image.Image) -> Image.Image:
        try:
            picture = await asyncio.to_thread(pixels, file)
        except (OSError, ValueError) as exc:
            raise InvalidArgument("not a picture") from exc
        masks = await self.batches.to_async.segment(picture[None])
        return Image.fromarray(masks[0].astype(np.uint8) * 255)
