"""LitServe: decode, predict, encode; batches and workers by its own guide.

    python -m benchmarks.peer_servers.with_litserve

It has a time-out for what waits in its queue, and no bound on how many wait. It compares
annotations by value, so they must not be postponed.
"""

import os
from typing import Any

import litserve as ls
import numpy as np
import torch
from fastapi import HTTPException, Request, Response
from numpy.typing import NDArray

from benchmarks.peer_servers.asked import Asked
from benchmarks.peer_servers.net import Net, decoded, encoded


class Segmentation(ls.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        asked = Asked.read()
        self.net = Net(asked.model, fast=asked.fast)

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        form: Any = request  # a form arrives parsed
        try:
            return decoded(form["file"].file.read())
        except (OSError, ValueError) as exc:
            raise HTTPException(422, "not a picture") from exc

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        return inputs

    def predict(self, x: list[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        return self.net.segment(x)

    def unbatch(self, output: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        return output

    def encode_response(self, output: NDArray[np.bool_]) -> Response:
        return Response(encoded(output), media_type="image/png")


if __name__ == "__main__":
    asked = Asked.read()
    api = Segmentation(max_batch_size=asked.batch, batch_timeout=0.01, api_path="/segment")
    # On a CPU as many workers as cores, it says.
    workers = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    server = ls.LitServer(api, workers_per_device=workers, timeout=asked.timeout_s)
    server.run(host="127.0.0.1", port=asked.port, generate_client_file=False, log_level="warning")
