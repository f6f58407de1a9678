"""Large pictures, far more than fit: memory stays within what the settings allow."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fleet.processes import Replica, free_ports
from tests.server import encoded, picture, truth

pytestmark = pytest.mark.journey

HEIGHT, WIDTH = 2000, 3000
PIXELS_IN_FLIGHT = 3 * HEIGHT * WIDTH
BODY_BYTES_IN_FLIGHT = 40 * 2**20
BATCH_PIXELS = 1024 * 1024
# Decoded pixels, bodies, the copies that a decoder, two batches and masks need, the fake engine's
# own float32 planes, and what the allocator and the interpreter keep beyond.
DECODED = 3 * PIXELS_IN_FLIGHT
WORKING = 8 * HEIGHT * WIDTH + 2 * 3 * BATCH_PIXELS + 9 * BATCH_PIXELS
SLACK = 48 * 2**20


def memory(pid: int, name: str) -> int:
    """VmRSS or VmHWM in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def test_flood_of_large_pictures_stays_within_the_settings(tmp_path: Path) -> None:
    pixels = picture(HEIGHT, WIDTH)
    expected = truth(pixels)
    data = encoded(pixels, compress_level=1)
    assert 3 * len(data) < BODY_BYTES_IN_FLIGHT
    [port] = free_ports(1)
    replica = Replica(
        "flooded",
        tmp_path,
        port,
        batch_s=0.0,
        settings={
            "TERNAUS_MAX_PIXELS_IN_FLIGHT": str(PIXELS_IN_FLIGHT),
            "TERNAUS_MAX_BODY_BYTES_IN_FLIGHT": str(BODY_BYTES_IN_FLIGHT),
            "TERNAUS_MAX_BATCH_PIXELS": str(BATCH_PIXELS),
            "TERNAUS_WHOLE_PIXELS": str(BATCH_PIXELS),
            "TERNAUS_TILE": "1024",
        },
    )
    try:
        replica.wait_ready()
        with httpx.Client(base_url=replica.url, timeout=90, trust_env=False) as client:
            assert client.post("/segment", content=encoded(picture())).status_code == 200
            pid = replica.program.popen.pid
            idle = memory(pid, "VmRSS")

            def send(_: int) -> httpx.Response:
                return client.post("/segment", content=data)

            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(send, range(60)))
            peak = memory(pid, "VmHWM")
            right = [answer for answer in answers if answer.status_code == 200]
            for answer in right:
                with Image.open(io.BytesIO(answer.content)) as mask:
                    assert (np.asarray(mask) > 0).tobytes() == expected.tobytes()
            refusals = [answer for answer in answers if answer.status_code != 200]
            assert {answer.status_code for answer in refusals} == {503}
            assert {answer.json()["code"] for answer in refusals} <= {"queue_full", "overloaded"}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refusals)
            assert right, "nobody was served"
            assert len(refusals) > 5, "the flood was none"
            bound = idle + DECODED + BODY_BYTES_IN_FLIGHT + WORKING + SLACK
            assert peak < bound, f"{peak:,} bytes; idle {idle:,}, allowed {bound:,}"
            # Unbounded, twenty at a time would have held more than this.
            assert bound < idle + 20 * (3 * HEIGHT * WIDTH + len(data))
            figures = client.get("/health").json()["figures"]
            assert figures["body_bytes"] == figures["body_pixels"] == figures["requests"] == 0
    finally:
        replica.program.end()
