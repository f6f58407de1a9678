"""Journeys of users and operators through a real server process with the shipped model."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from app.api.docs import EXAMPLES
from app.encodings import base as encodings
from app.store.store import ModelStore
from app.types import ClassSpec, Mask
from tests.journeys.process import STORE, Process, serving

pytestmark = pytest.mark.journey

MODEL = "buildings"


def newest(model: str = MODEL) -> Path:
    return max((STORE / model).glob("[0-9]*"), key=lambda path: int(path.name))


def sample(model: str = MODEL) -> tuple[bytes, np.ndarray]:
    """A shipped model's sample picture, and its mask as Pillow reads it."""
    folder = newest(model)
    manifest = json.loads((folder / "manifest.json").read_text())
    with Image.open(folder / manifest["sample"]["mask"]) as image:
        mask = np.asarray(image) > 0
    return (folder / manifest["sample"]["picture"]).read_bytes(), mask


def piece() -> bytes:
    """Of the shipped model's sample picture: for where many masks are wanted, and no known one."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(sample()[0])) as image:
        image.crop((192, 0, 320, 128)).save(out, "PNG")
    return out.getvalue()


def threshold() -> float:
    manifest = json.loads((newest() / "manifest.json").read_text())
    return float(manifest["threshold"])


def agree(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found & expected).sum() / (found | expected).sum())


def client_of(process: Process) -> httpx.Client:
    return httpx.Client(base_url=process.url, timeout=260.0, trust_env=False)


def test_curl_examples_run_as_shown(server: Process, tmp_path: Path) -> None:
    assert shutil.which("curl"), "curl is needed: the documentation shows it"
    data, expected = sample()
    (tmp_path / "roof.jpg").write_bytes(data)
    for words, command in EXAMPLES:
        done = subprocess.run(
            command.format(url=server.url).replace("curl ", "curl -sS --fail-with-body "),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        if "-o mask.png" in command and "threshold" not in command:
            with Image.open(tmp_path / "mask.png") as image:
                assert agree(np.asarray(image) > 0, expected) > 0.99
        if "application/json" in command:
            body = json.loads(done.stdout)
            assert body["model"] == MODEL
            rle = body["classes"][0]["rle"]
            found = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()})
            assert agree(found.astype(bool), expected) > 0.99
        if "kaggle" in command:
            planes = encodings.get("kaggle").decode(done.stdout.encode(), expected.shape)
            assert agree(planes[0], expected) > 0.99
        if "probability.png" in command:
            with Image.open(tmp_path / "probability.png") as image:
                assert agree(np.asarray(image) > 255 * threshold(), expected) > 0.99


def test_photograph_of_a_phone_is_shown_at_the_scale_of_its_model(server: Process) -> None:
    data, expected = sample("pets")
    with Image.open(io.BytesIO(data)) as small:
        width, height = small.width * 9, small.height * 9
        large = small.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    large.save(out, "JPEG", quality=90)
    with client_of(server) as client:
        answer = client.post("/segment", params={"model": "pets"}, content=out.getvalue())
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model"].startswith("pets@")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (width, height)
        mask = np.asarray(image) > 0
    assert 0.1 < expected.mean() < 0.9
    assert agree(mask, np.kron(expected, np.ones((9, 9), bool))) > 0.95


def test_several_processes_give_the_same_bytes(server: Process, warm_cache: str) -> None:
    """And the front ends hold no engine: that is in a process of its own."""
    data = piece()
    queries = ["", "?format=rle", "?format=probability"]
    with client_of(server) as client:
        expected = [client.post(f"/segment{query}", content=data).content for query in queries]
    environment = {
        "TERNAUS_CACHE_DIR": warm_cache,
        "TERNAUS_DRAIN_GRACE_S": "0",
        "TERNAUS_REQUEST_TIMEOUT_S": "250",
    }
    with serving("--frontends", "2", "--model", MODEL, **environment) as process:
        process.wait_ready()
        with client_of(process) as client:
            found = [client.post(f"/segment{query}", content=data) for query in queries]
            front = client.get("/health").json()["process"]
            loaded = Path(f"/proc/{front}/maps").read_text()
        assert [answer.status_code for answer in found] == [200] * len(queries)
        assert [answer.content for answer in found] == expected
        assert "httptools" in loaded
        assert "openvino" not in loaded
        assert "libtorch" not in loaded
        process.terminate()
        assert process.wait_exit() == 0, process.text


def test_every_page_that_is_named_answers(server: Process) -> None:
    with client_of(server) as client:
        for path in client.get("/").json()["places"]:
            if path != "/segment":
                assert client.get(path).status_code == 200, path
        assert "curl" in client.get("/", headers={"accept": "text/html"}).text
        health = client.get("/health").json()
        assert health["ready"]
        assert health["models"][0]["name"] == MODEL
        assert client.get("/nowhere").json()["code"] == "route_not_found"
        assert client.get("/segment").json()["code"] == "method_not_allowed"


def test_picture_of_every_size_gives_its_own_size(server: Process) -> None:
    data, _ = sample()
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    with client_of(server) as client:
        for width, height in [(1, 1), (33, 65), (300, 2), (700, 580)]:
            out = io.BytesIO()
            picture.resize((width, height)).save(out, "PNG")
            answer = client.post("/segment", content=out.getvalue())
            assert answer.status_code == 200, answer.text
            with Image.open(io.BytesIO(answer.content)) as mask:
                assert mask.size == (width, height)


def test_bad_pictures_hurt_nobody_else(server: Process) -> None:
    data, expected = sample()
    bad = [b"", b"nonsense", data[: len(data) // 2], b"%PDF-1.4", data[:300]]

    def send(body: bytes) -> httpx.Response:
        with client_of(server) as client:
            return client.post("/segment", content=body)

    with ThreadPoolExecutor(6) as pool:
        bodies = [data, *bad, data, *bad, data]
        answers = list(pool.map(send, bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body == data:
            with Image.open(io.BytesIO(answer.content)) as mask:
                assert agree(np.asarray(mask) > 0, expected) > 0.99
        else:
            assert answer.status_code in (400, 415, 422), answer.text


def test_clients_that_leave_cost_nothing(server: Process) -> None:
    data, _ = sample()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    for cut in (10, len(data) // 2, len(data)):
        for _ in range(4):
            with socket.create_connection((host, int(port))) as line:
                line.sendall(head + data[:cut])
    with client_of(server) as client:
        assert client.post("/segment", content=data).status_code == 200
        until = time.monotonic() + 60
        while client.get("/health").json()["figures"]["requests"]:
            assert time.monotonic() < until, "requests of clients that left are still counted"
            time.sleep(0.02)


def test_sigterm_loses_nothing_and_exits_0(warm_cache: str) -> None:
    data, expected = sample()
    environment = {"TERNAUS_CACHE_DIR": warm_cache, "TERNAUS_DRAIN_GRACE_S": "1"}
    with serving("--model", MODEL, **environment) as process:
        process.wait_ready()
        answers: list[httpx.Response] = []

        def send() -> None:
            with client_of(process) as client:
                answers.append(client.post("/segment", content=data))

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        with client_of(process) as client:
            while client.get("/health").json()["figures"]["requests"] < 1:
                time.sleep(0.005)
            process.terminate()
            while client.get("/health/ready").status_code == 200:
                time.sleep(0.005)
            assert client.get("/health/ready").json()["state"] == "draining"
            assert client.get("/health/live").status_code == 200
            # Within the grace time a new request is still served, and told to go elsewhere next.
            late = client.post("/segment", content=data)
            assert late.status_code == 200
            assert late.headers["connection"] == "close"
        for thread in threads:
            thread.join(120)
        assert [answer.status_code for answer in answers] == [200] * 3
        for answer in answers:
            with Image.open(io.BytesIO(answer.content)) as mask:
                assert agree(np.asarray(mask) > 0, expected) > 0.99
        assert process.wait_exit() == 0, process.text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors"),
        (
            lambda folder: (folder / "weights.safetensors").write_bytes(
                (folder / "weights.safetensors").read_bytes()[:-1000]
            ),
            "weights.safetensors",
        ),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json"),
        (lambda folder: (folder / "sample.mask.png").write_bytes(b"x"), "sample.mask.png"),
    ],
)
def test_damaged_store_never_becomes_ready(damage, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(newest(), tmp_path / MODEL / "1")
    for path in (tmp_path / MODEL / "1").iterdir():
        path.chmod(0o644)
    manifest = tmp_path / MODEL / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"version": {newest().name}', '"version": 1'))
    damage(tmp_path / MODEL / "1")
    with serving("--store", str(tmp_path), TERNAUS_CACHE_DIR=str(tmp_path / "cache")) as process:
        assert process.wait_exit() == 1
        assert words in process.text
        assert "Traceback" not in process.text


def test_sample_that_does_not_match_never_becomes_ready(warm_cache: str, tmp_path: Path) -> None:
    """A model that gives another mask than its own is not served, however sound its files are."""
    origin = ModelStore(STORE)
    manifest = origin.manifest(MODEL)
    files = dict(origin.fetch(MODEL))
    png = encodings.get("png")
    planes = png.decode(files["sample.mask.png"].read_bytes())
    classes = (ClassSpec("building", (255, 0, 0)),)
    wrong = Mask.from_planes(~planes.astype(np.bool_), "binary", classes)
    (tmp_path / "wrong.png").write_bytes(png.encode(wrong))
    files["sample.mask.png"] = tmp_path / "wrong.png"
    ModelStore(tmp_path / "store").publish(MODEL, manifest.draft(), files)
    with serving("--store", str(tmp_path / "store"), TERNAUS_CACHE_DIR=warm_cache) as process:
        assert process.wait_exit() == 1
        assert "did not give its own mask" in process.text
