"""`POST /segment` over a real connection; the masks are checked against Pillow and plain numpy."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from app.errors import EngineLost
from app.types import Pixels
from tests.fakes import FakeEngine
from tests.server import Running, encoded, picture, running, sampled, truth

PATIENCE = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found


def opened(response: httpx.Response) -> NDArray[np.bool_]:
    """A mask PNG, read by Pillow."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as image:
        return np.asarray(image) > 0


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """A problem document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["detail"] == body["error"]
    assert body["type"] == f"urn:ternaus:problem:{code}"
    assert body["request_id"] == response.headers["x-request-id"]
    return body


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 300), (48, 80), (64, 64), (33, 31), (200, 333)]
)
def test_mask_has_the_size_of_the_picture(server: Running, height: int, width: int) -> None:
    pixels = picture(height, width)
    assert (opened(server.post(encoded(pixels))) == truth(pixels)).all()


def test_raw_body_and_form_give_the_same(server: Running) -> None:
    data = encoded(picture(), "JPEG")
    raw = server.post(data, content_type="image/jpeg")
    form = server.client.post("/segment", files={"file": ("roof.jpg", data, "image/jpeg")})
    assert opened(raw).any()
    assert raw.content == form.content


def test_turned_picture_gives_the_mask_as_a_person_sees_it(server: Running) -> None:
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    response = server.post(encoded(pixels, "PNG", exif=exif))
    assert response.headers["x-orientation-applied"] == "6"
    assert (opened(response) == np.rot90(truth(pixels), -1)).all()
    assert "x-orientation-applied" not in server.post(encoded(pixels)).headers


def test_large_picture_is_tiled_without_a_seam(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine, whole_pixels=128 * 128, tile=256) as server:
        pixels = picture(700, 1111)
        assert (opened(server.post(encoded(pixels))) == truth(pixels)).all()
        scored = server.post(encoded(pixels), "?format=probability")
    with Image.open(io.BytesIO(scored.content)) as image:
        assert (np.asarray(image) == pixels[..., 0]).all()
    assert len(engine.batches) > 10


def test_rle_answer_says_what_users_need(server: Running) -> None:
    pixels = picture()
    expected = truth(pixels)
    by_accept = server.post(encoded(pixels), accept="application/json")
    by_query = server.post(encoded(pixels), "?format=rle")
    assert by_accept.json() == by_query.json()
    body = by_accept.json()
    assert (body["model"], body["version"], body["size"]) == ("fake", 1, [48, 80])
    [found] = body["classes"]
    assert found["name"] == "bright"
    assert found["area"] == int(expected.sum())
    rle = {"size": found["rle"]["size"], "counts": found["rle"]["counts"].encode()}
    assert (coco.decode(rle).astype(bool) == expected).all()
    assert found["bbox"] == coco.toBbox(rle).tolist()
    mean = pixels[..., 0][expected].mean() / 255
    assert found["mean_score"] == pytest.approx(mean, abs=0.002)


def test_threshold_is_strict_and_the_clients(server: Running) -> None:
    pixels = np.full((32, 32, 3), 102, np.uint8)  # 102 / 255 = 0.4
    assert not opened(server.post(encoded(pixels), "?threshold=0.4")).any()
    assert opened(server.post(encoded(pixels), "?threshold=0.399")).all()


@pytest.mark.parametrize("query", ["?model=fake", "?model=fake@1", "?model=fake%401", ""])
def test_model_by_name_and_version(server: Running, query: str) -> None:
    assert server.post(encoded(picture()), query).headers["x-model"] == "fake@1"


def test_answer_carries_times_and_ids(server: Running) -> None:
    response = server.post(encoded(picture()), x_request_id="abc-1")
    assert response.headers["x-request-id"] == "abc-1"
    names = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["receive", "decode", "queue", "infer", "encode"]
    durations = [float(p.split("dur=")[1]) for p in response.headers["server-timing"].split(", ")]
    assert all(0 <= value < 10_000 for value in durations)
    assert int(response.headers["x-total-time"]) >= 0
    other = server.post(encoded(picture()), x_request_id="bad id\twith spaces")
    assert len(other.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?model=nobody", 404, "model_not_found"),
        ("?model=fake@9", 404, "model_not_found"),
        ("?format=gif", 400, "bad_parameter"),
        ("?colour=red", 400, "bad_parameter"),
        ("?threshold=2", 400, "bad_parameter"),
        ("?frame=5", 400, "bad_parameter"),
    ],
)
def test_wrong_options(server: Running, query: str, status: int, code: str) -> None:
    refused(server.post(encoded(picture()), query), status, code)


def test_unknown_names_are_listed(server: Running) -> None:
    body = refused(server.post(b"", "?colour=red"), 400, "bad_parameter")
    assert "format, model, threshold" in body["detail"]
    body = refused(server.post(encoded(picture()), "?model=nobody"), 404, "model_not_found")
    assert "fake@1" in body["detail"]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"GIF89a", 422, "picture_damaged"),
        (b"%PDF-1.7 not a picture", 415, "picture_unsupported"),
        (b"hello", 415, "picture_unsupported"),
        (encoded(picture(), "JPEG")[:400], 422, "picture_damaged"),
    ],
)
def test_wrong_pictures(server: Running, data: bytes, status: int, code: str) -> None:
    refused(server.post(data), status, code)


def test_limits_are_named(tmp_path: Path) -> None:
    with running(tmp_path, max_body_bytes=5000, max_pixels=2000) as server:
        body = refused(server.post(b"x" * 5001), 413, "body_too_large")
        assert (body["limit"], body["limit_value"]) == ("TERNAUS_MAX_BODY_BYTES", 5000)

        def stream() -> Iterator[bytes]:
            for _ in range(20):
                yield b"x" * 1000

        chunked = server.client.post("/segment", content=stream())
        refused(chunked, 413, "body_too_large")
        body = refused(
            server.post(encoded(np.zeros((50, 50, 3), np.uint8))), 422, "picture_too_large"
        )
        assert (body["limit"], body["limit_value"]) == ("TERNAUS_MAX_PIXELS", 2000)
        assert opened(server.post(encoded(np.zeros((30, 30, 3), np.uint8)))).shape == (30, 30)


def test_encoded_body_is_refused(server: Running) -> None:
    refused(server.post(b"x", content_encoding="gzip"), 415, "picture_unsupported")


def test_nothing_acceptable(server: Running) -> None:
    refused(server.post(encoded(picture()), accept="video/mp4"), 406, "not_acceptable")


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5"])
def test_wrong_timeout(server: Running, value: str) -> None:
    refused(server.post(encoded(picture()), x_request_timeout_ms=value), 400, "bad_parameter")


class Holding:
    """Keeps the engine busy from the second call on (the first is the self-test)."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()
        self.armed = False

    def __call__(self, pixels: Pixels) -> None:
        if self.armed:
            self.entered.release()
            assert self.leave.wait(PATIENCE)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Running, Holding, FakeEngine]]:
    holding = Holding()
    engine = FakeEngine(sampled(tmp_path), before=holding)
    with running(tmp_path, engine, max_requests=2) as server:
        holding.armed = True
        try:
            yield server, holding, engine
        finally:
            holding.leave.set()


def in_background(
    server: Running, value: int, **headers: str
) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    data = encoded(np.full((32, 32, 3), value, np.uint8))
    thread = threading.Thread(target=lambda: found.append(server.post(data, **headers)))
    thread.start()
    return thread, found


def test_deadline_passes_while_the_device_is_busy(held: Any) -> None:
    server, holding, _ = held
    late = server.post(encoded(picture()), x_request_timeout_ms="150")
    body = refused(late, 504, "deadline_exceeded")
    assert body["stage"] == "queue"
    holding.leave.set()


def test_full_house_is_refused_before_the_body_is_read(held: Any) -> None:
    server, holding, _ = held
    threads = [in_background(server, 10), in_background(server, 20)]
    assert holding.entered.acquire(timeout=PATIENCE)
    until = time.monotonic() + PATIENCE
    while server.house.admission.requests < 2:
        assert time.monotonic() < until
        time.sleep(0.002)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as line:
        # Headers alone: the answer comes although not one byte of the body was sent.
        line.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
        answer = line.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 503")
    assert "retry-after: " in answer.lower()
    assert json.loads(answer.split("\r\n\r\n")[1])["code"] == "queue_full"
    holding.leave.set()
    for thread, found in threads:
        thread.join(PATIENCE)
        assert found[0].status_code == 200


def test_client_that_leaves_is_dropped_before_the_device(held: Any) -> None:
    server, holding, engine = held
    thread, found = in_background(server, 10)
    assert holding.entered.acquire(timeout=PATIENCE)
    data = encoded(np.full((32, 32, 3), 77, np.uint8))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as line:
        head = f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        line.sendall(head.encode() + data)
        until = time.monotonic() + PATIENCE
        while server.house.device.figures()["tiles"] < 1:
            assert time.monotonic() < until
            time.sleep(0.002)
    while server.house.admission.requests > 1:  # the place is free as soon as the client is gone
        assert time.monotonic() < until
        time.sleep(0.002)
    holding.leave.set()
    thread.join(PATIENCE)
    assert found[0].status_code == 200
    assert server.post(encoded(np.full((32, 32, 3), 99, np.uint8))).status_code == 200
    assert (77,) not in engine.batches
    metrics = server.client.get("/metrics").text
    assert 'ternaus_requests_total{code="499",reason="client_gone",route="/segment"} 1.0' in metrics


def test_lost_engine_is_neither_ready_nor_live(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine) as server:

        def die(pixels: Pixels) -> None:
            raise EngineLost("sticky")

        engine.before = die
        refused(server.post(encoded(picture())), 503, "not_ready")
        assert server.client.get("/health/live").status_code == 503
        assert server.client.get("/health/ready").json() == {"ready": False, "state": "lost"}
        answer = server.post(encoded(picture()))
        refused(answer, 503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1


def test_defect_of_ours_tells_nothing_internal(tmp_path: Path) -> None:
    engine = FakeEngine(sampled(tmp_path))
    with running(tmp_path, engine) as server:

        def fail(pixels: Pixels) -> None:
            raise RuntimeError("secret path /etc/passwd")

        engine.before = fail
        body = refused(server.post(encoded(picture())), 500, "inference_failed")
        assert "secret" not in json.dumps(body)
        engine.before = lambda pixels: None
        assert opened(server.post(encoded(picture()))).any()


def test_slow_body_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, body_timeout_s=0.1) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as line:
            line.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc")
            answer = line.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "TERNAUS_BODY_TIMEOUT_S" in answer


def test_overload_can_be_told_as_429(tmp_path: Path) -> None:
    holding = Holding()
    engine = FakeEngine(sampled(tmp_path), before=holding)
    with running(tmp_path, engine, max_requests=1, overload_status=429) as server:
        holding.armed = True
        thread, found = in_background(server, 10)
        assert holding.entered.acquire(timeout=PATIENCE)
        body = refused(server.post(encoded(picture())), 429, "queue_full")
        assert body["retry_after_ms"] >= 1
        holding.leave.set()
        thread.join(PATIENCE)
        assert found[0].status_code == 200
