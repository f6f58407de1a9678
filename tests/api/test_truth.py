"""Ways to lie about health, over a real connection: none of them is open."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.device import LocalDevice
from app.types import Inference, Pixels
from tests.fakes import FakeEngine
from tests.server import Running, encoded, picture, running, sampled

PATIENCE = 20.0


def state(server: Running, probe: str) -> tuple[int, str]:
    answer = server.client.get(f"/health/{probe}")
    return answer.status_code, answer.json()["state"]


def wait_for(server: Running, probe: str, expected: tuple[int, str]) -> None:
    until = time.monotonic() + PATIENCE
    while (found := state(server, probe)) != expected:
        assert time.monotonic() < until, found
        time.sleep(0.005)


def test_hung_engine_is_neither_live_nor_ready_until_it_goes_on(tmp_path: Path) -> None:
    hung, free = threading.Event(), threading.Event()
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine, stall_after_s=0.2) as server:

        def hang(pixels: Pixels) -> None:
            hung.set()
            assert free.wait(PATIENCE)

        engine.before = hang
        answer = server.post(encoded(picture()), x_request_timeout_ms="100")
        assert hung.is_set()
        # Told the truth in time, although the engine never came back.
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        wait_for(server, "live", (503, "stalled"))
        assert state(server, "ready") == (503, "stalled")
        refused = server.post(encoded(picture()))
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        assert "ternaus_live 0.0" in server.client.get("/metrics").text
        engine.before = lambda pixels: None
        free.set()
        wait_for(server, "live", (200, "idle"))
        assert server.post(encoded(picture())).status_code == 200


def test_dead_device_thread_is_seen_at_once(tmp_path: Path) -> None:
    class Broken:
        """An observer with a defect: it takes the device thread with it."""

        def batch(self, *args: Any, **rest: Any) -> None:
            raise ZeroDivisionError

        def dropped(self, stage: str, reason: str) -> None: ...

        def retried(self, cause: str) -> None: ...

    with running(tmp_path) as server:
        assert isinstance(server.house.device, LocalDevice)
        server.house.device.batcher._observer = Broken()
        answer = server.post(encoded(picture()))
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert state(server, "live") == (503, "lost")
        assert state(server, "ready") == (503, "lost")
        assert server.post(encoded(picture())).status_code == 503


class Liar(FakeEngine):
    """Says the opposite while `lies` is set."""

    lies = False

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        found = super().infer(pixels, thresholds, probability=probability)
        assert found.bits is not None
        return replace(found, bits=~found.bits) if self.lies else found


def test_canary_that_fails_takes_readiness_and_gives_it_back(tmp_path: Path) -> None:
    engine = Liar(sampled(tmp_path))
    with running(tmp_path, engine, canary_s=0.05) as server:
        engine.lies = True
        wait_for(server, "ready", (503, "failing"))
        # A restart is no cure for what may pass: live, but nobody should send anything.
        assert state(server, "live") == (200, "failing")
        refused = server.post(encoded(picture()))
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "canary" in server.client.get("/health").json()["failures"]
        engine.lies = False
        wait_for(server, "ready", (200, "idle"))
        assert server.post(encoded(picture())).status_code == 200
