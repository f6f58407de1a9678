"""mosec: three stages, the net in the middle one with batches.

python -m benchmarks.peer_servers.with_mosec --port 8000 --timeout 30000
"""

from __future__ import annotations

import os

import numpy as np
from mosec import Server, Worker
from mosec.errors import ValidationError
from numpy.typing import NDArray

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net, decoded, encoded


class Decode(Worker):  # type: ignore[misc]
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> NDArray[np.uint8]:
        try:
            return decoded(data)
        except (OSError, ValueError) as exc:
            raise ValidationError("not a picture") from exc


class Segment(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        asked = Asked.read()
        self.net = Net(asked.model, fast=asked.fast)

    def forward(self, data: list[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        return self.net.segment(data)


class Encode(Worker):  # type: ignore[misc]
    resp_mime_type = "image/png"

    def forward(self, data: NDArray[np.bool_]) -> bytes:
        return encoded(data)

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    asked = Asked.read()
    cores = len(os.sched_getaffinity(0))
    server = Server()
    server.append_worker(Decode, num=cores, route="/segment")
    server.append_worker(
        Segment, num=1, max_batch_size=asked.batch, max_wait_time=10, route="/segment"
    )
    server.append_worker(Encode, num=1, route="/segment")
    server.run()
