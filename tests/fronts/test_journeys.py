"""Real processes over loopback, and one test for each of them that ends, hangs or lies."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.fronts.count import Pace, front_ends
from tests.fronts.together import PATIENCE, Together, alive, together, until
from tests.server import encoded, picture, truth

pytestmark = pytest.mark.journey

# 128 x 128 pixels at most are one tile, so that a larger picture has several.
SMALL: dict[str, Any] = {"whole_pixels": 128 * 128, "tile": 256}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    with together(tmp_path_factory.mktemp("fronts"), canary_s=0, **SMALL) as process:
        yield process


def mask_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.asarray(image) > 0


def counted(process: Together, name: str) -> float:
    """The sum of a metric over its labels."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", process.get("/metrics").text, re.M)
    return sum(float(value) for value in found)


class Sending:
    """Requests on threads, whose answers are looked at later."""

    def __init__(self, process: Together, count: int, pixels: np.ndarray) -> None:
        self._pool = ThreadPoolExecutor(count)
        data = encoded(pixels)
        self._answers = [self._pool.submit(process.post, data) for _ in range(count)]

    def answers(self) -> list[httpx.Response]:
        found = [answer.result(PATIENCE) for answer in self._answers]
        self._pool.shutdown()
        return found


@pytest.mark.parametrize(("height", "width"), [(1, 1), (48, 80), (128, 128), (300, 500)])
@pytest.mark.parametrize("front", ["front-0", "front-1"])
def test_masks_are_those_of_one_process(
    server: Together, front: str, height: int, width: int
) -> None:
    pixels = picture(height, width, seed=height)
    with server.at(front) as client:
        answer = client.post("/segment", content=encoded(pixels))
        assert (mask_of(answer) == truth(pixels)).all()
        grey = client.post("/segment?format=probability", content=encoded(pixels))
        with Image.open(io.BytesIO(grey.content)) as image:
            assert (np.asarray(image) == pixels[..., 0]).all()
        assert client.get("/models").json()["models"][0]["engine"]["backend"] == "fake"


def test_totals_over_front_ends_are_what_was_sent(server: Together) -> None:
    names = [
        "ternaus_requests_total",
        'ternaus_stage_duration_seconds_count{stage="infer"}',
        "ternaus_request_duration_seconds_count",
    ]
    before = [counted(server, re.escape(name) if "{" in name else name) for name in names]
    pictures = [picture(96, 96, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.post, [encoded(pixels) for pixels in pictures]))
    for pixels, answer in zip(pictures, answers, strict=True):
        assert (mask_of(answer) == truth(pixels)).all()
    for front in ("front-0", "front-1"):
        with server.at(front) as client:
            text = client.get("/metrics").text
        assert text.count("# TYPE ternaus_requests_total counter") == 1

    def more() -> list[float]:
        after = [counted(server, re.escape(name) if "{" in name else name) for name in names]
        return [late - early for late, early in zip(after, before, strict=True)]

    # A request is counted when its last byte has been sent, so its client may be here before.
    until(lambda: more() == [40, 40, 40])
    assert counted(server, "ternaus_slot_bytes") == 0


def test_client_that_leaves_frees_its_slot(server: Together) -> None:
    server.order("hang")
    try:
        holding = Sending(server, 1, picture(64, 64))
        server.entered()
        data = encoded(picture(128, 128))
        host, port = server.url.removeprefix("http://").split(":")
        head = f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        with socket.create_connection((host, int(port))) as line:
            line.sendall(head + data)
            until(lambda: server.figures()["tiles"] >= 1)
        until(lambda: server.figures()["requests"] == 1)
    finally:
        server.recall("hang")
    assert [answer.status_code for answer in holding.answers()] == [200]
    until(lambda: server.figures()["slot_bytes"] == 0)


def test_bounds_hold_for_all_front_ends_together(tmp_path: Path) -> None:
    with together(tmp_path, max_requests=3, canary_s=0) as process:
        process.order("hang")
        holding = Sending(process, 3, picture(64, 64))
        until(lambda: process.figures()["requests"] == 3)
        for front in ("front-0", "front-1"):
            with process.at(front) as client:
                answer = client.post("/segment", content=encoded(picture()))
                assert answer.json()["code"] == "queue_full"
        process.recall("hang")
        assert [answer.status_code for answer in holding.answers()] == [200] * 3


def test_free_slots_are_the_back_pressure(tmp_path: Path) -> None:
    """A megabyte between each front end and the engine: tiles wait in line, none is lost, and a
    tile that could never fit is computed in smaller ones."""
    with together(tmp_path, slot_bytes=2**20, canary_s=0) as process:
        process.order("hang")
        holding = Sending(process, 24, picture(256, 256))
        until(lambda: process.figures()["requests"] == 24)
        assert 0 < process.figures()["slot_bytes"] <= 2 * 2**20
        process.recall("hang")
        assert [answer.status_code for answer in holding.answers()] == [200] * 24
        large = picture(1000, 1000)
        assert (mask_of(process.post(encoded(large))) == truth(large)).all()


@pytest.mark.parametrize("way", ["kill", "die", "lose"])
def test_dead_engine_costs_what_it_had_and_comes_back(tmp_path: Path, way: str) -> None:
    with together(tmp_path, canary_s=0) as process:
        assert process.post(encoded(picture())).status_code == 200
        batches = counted(process, "ternaus_batches_total")
        busy = counted(process, "ternaus_device_busy_seconds_total")
        engine = process.children()["engine"]
        process.order("hang")
        holding = Sending(process, 4, picture(64, 64))
        process.entered()
        until(lambda: process.figures()["requests"] == 4)
        if way == "kill":
            process.order("refuse")
            process.kill("engine")
        else:
            process.order(way)
        process.recall("hang")
        for answer in holding.answers():
            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] == "not_ready"
            assert int(answer.headers["retry-after"]) >= 1
        if way == "kill":
            # While it cannot come back: not ready, and truly so, but not a case for a restart.
            with process.at("front-0") as client:
                assert client.get("/health/ready").json() == {"ready": False, "state": "restarting"}
                assert client.get("/health/live").status_code == 200
                refused = client.post("/segment", content=encoded(picture()))
                assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
                assert client.get("/models").json() == {"models": []}
            process.recall("refuse")
        until(lambda: process.children()["engine"] != engine)
        until(process.all_ready)
        pixels = picture(seed=3)
        assert (mask_of(process.post(encoded(pixels))) == truth(pixels)).all()
        assert counted(process, "ternaus_batches_total") > batches
        assert counted(process, "ternaus_device_busy_seconds_total") >= busy
        until(lambda: process.figures()["slot_bytes"] == 0)
        assert not alive(engine)


@pytest.mark.parametrize("way", ["stop", "hang"])
def test_engine_that_stands_still_is_not_live(tmp_path: Path, way: str) -> None:
    with together(tmp_path, canary_s=0, stall_after_s=1.5) as process:
        engine = process.children()["engine"]
        if way == "stop":
            process.kill("engine", signal.SIGSTOP)
            until(lambda: process.get("/health/live").status_code == 503)
        else:
            process.order("hang")
            holding = Sending(process, 1, picture(64, 64))
            until(lambda: process.get("/health/live").status_code == 503)
        # Nobody restarted us, so the supervisor ends the engine, and another takes over.
        until(lambda: process.children()["engine"] != engine)
        process.recall("hang")
        until(process.all_ready)
        assert process.get("/health/live").status_code == 200
        assert process.post(encoded(picture())).status_code == 200
        if way == "hang":
            assert [answer.status_code for answer in holding.answers()] == [503]
        assert "makes no progress" in process.text


def test_dead_front_end_costs_its_own_requests_alone(tmp_path: Path) -> None:
    with together(tmp_path, canary_s=0) as process:
        requests = counted(process, "ternaus_requests_total")
        process.order("hang")
        data = encoded(picture(64, 64))
        with ThreadPoolExecutor(6) as pool:
            clients = [process.front(f"front-{n % 2}") for n in range(6)]
            answers = [pool.submit(client.post, "/segment", content=data) for client in clients]
            process.entered()
            until(lambda: process.figures()["requests"] == 6)
            dead = process.kill("front-0")
            until(lambda: not alive(dead))
            # Its requests are nobody's, and its place at the door is free again.
            until(lambda: process.figures()["requests"] == 3)
            process.recall("hang")
            for number, answer in enumerate(answers):
                if number % 2:
                    assert answer.result(PATIENCE).status_code == 200
                else:
                    with pytest.raises(httpx.TransportError):
                        answer.result(PATIENCE)
        for client in clients:
            client.close()
        # Connections that the kernel gave to the dead one waited for its successor.
        fresh = [process.post(data) for _ in range(12)]
        assert [answer.status_code for answer in fresh] == [200] * 12
        until(lambda: process.children()["front-0"] != dead)
        until(process.all_ready)
        until(lambda: process.figures()["slot_bytes"] == 0)
        # A request is counted when its last byte has been sent, so its client may be here before.
        until(lambda: counted(process, "ternaus_requests_total") == requests + 3 + 12)


def test_connections_that_waited_for_a_dead_front_end_are_not_refused(tmp_path: Path) -> None:
    """However long the engine process takes to say what is open: it stands still meanwhile."""
    with together(tmp_path, canary_s=0, stall_after_s=900) as process:
        process.kill("engine", signal.SIGSTOP)
        try:
            dead = process.kill("front-0")
            until(lambda: not alive(dead))
            waiting = Sending(process, 12, picture(64, 64))
            until(lambda: "waiting for the engine process" in process.text)
        finally:
            process.kill("engine", signal.SIGCONT)
        assert [answer.status_code for answer in waiting.answers()] == [200] * 12


def test_nobody_outlives_the_supervisor(tmp_path: Path) -> None:
    with together(tmp_path, canary_s=0) as process:
        children = process.children()
        assert len(children) == 3
        process.popen.kill()
        process.wait_exit(30)
        for pid in children.values():
            until(lambda pid=pid: not alive(pid))  # type: ignore[misc]


def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    with together(tmp_path, canary_s=0, drain_grace_s=1.0) as process:
        data = encoded(picture(64, 64))
        stop = threading.Event()
        answers: list[httpx.Response] = []
        refused: list[Exception] = []

        def send() -> None:
            while not stop.is_set():
                try:
                    answers.append(process.post(data))
                except httpx.ConnectError as exc:
                    refused.append(exc)
                    return

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) > 20)
        process.terminate()
        until(lambda: process.get("/health/ready").status_code == 503)
        with process.client() as client:
            assert client.get("/health/ready").json()["state"] == "draining"
            assert client.get("/health/live").status_code == 200
            late = client.post("/segment", content=data)
            assert late.status_code == 200
            assert late.headers["connection"] == "close"
        stop.set()
        for thread in threads:
            thread.join(60)
        assert {answer.status_code for answer in answers} == {200}
        assert not refused
        assert process.wait_exit() == 0, process.text
        assert "Traceback" not in process.text


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    with together(tmp_path, canary_s=0) as process:
        process.order("hang")
        holding = Sending(process, 1, picture(64, 64))
        process.entered()
        process.terminate()
        until(lambda: "shutting down" in process.text)
        process.terminate()
        assert process.wait_exit(60) == 0
        with contextlib.suppress(httpx.TransportError):
            assert [answer.status_code for answer in holding.answers()] == [503]


def test_model_that_cannot_be_opened_ends_everything(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with together(tmp_path, ready=False) as process:
        assert process.wait_exit() == 1
        assert "this device takes no models" in process.text
        assert "Traceback" not in process.text


def test_address_in_use_is_told(server: Together, tmp_path: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with together(tmp_path, ready=False, port=port) as process:
        assert process.wait_exit() == 1
        assert f"port {port}" in process.text


def test_number_that_is_not_given_is_found(tmp_path: Path) -> None:
    with together(tmp_path, frontends=0, canary_s=0) as process:
        line = re.compile(
            r"(\d+) front ends: the device takes (\d+) pictures a second, "
            r"the host ([\d.]+) ms of a core for each, of (\d+) cores"
        )
        # Measured when the first front end is ready already.
        until(lambda: line.search(process.text))
        found = line.search(process.text)
        assert found
        count, cores = int(found[1]), int(found[4])
        assert count == front_ends(Pace(float(found[2]), float(found[3]) / 1000), cores)
        until(lambda: len(process.children()) == 1 + count)
        pixels = picture(seed=4)
        assert (mask_of(process.post(encoded(pixels))) == truth(pixels)).all()
        process.terminate()
        assert process.wait_exit() == 0, process.text
