"""Models changed in a running server: versions published while requests flow, good and bad ones."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from app.store.store import ModelStore
from tests.journeys.process import Process, serving
from tests.journeys.test_command_line import ternaus
from tests.journeys.test_serve import MODEL, agree, client_of, newest, sample

pytestmark = pytest.mark.journey

ADMIN = {"authorization": "Bearer sesame"}


def publish(store: Path, work: Path, picture: Path, *, bias: float, cache: str) -> None:
    """The next version through the command line. With another `bias` of the last layer than the
    shipped model's it has other weights, and so other masks.
    """
    work.mkdir()
    tensors = load_file(newest() / "weights.safetensors")
    tensors["final.bias"] = tensors["final.bias"] + np.float16(bias)
    save_file(tensors, work / "weights.safetensors")
    manifest = json.loads((newest() / "manifest.json").read_text())
    kept = ("architecture", "parameters", "task", "classes", "input", "licence", "provenance")
    about = {key: manifest[key] for key in kept if key in manifest}
    (work / "about.json").write_text(json.dumps({**about, "threshold": manifest["threshold"]}))
    done = ternaus(
        "models", "publish", str(work / "weights.safetensors"), "--name", MODEL,
        "--about", str(work / "about.json"), "--card", str(newest() / "README.md"),
        "--sample", str(picture), "--store", str(store), TERNAUS_CACHE_DIR=cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, warm_cache: str) -> Path:
    """A store with versions 1 and 2 of the shipped model, whose sample is a small piece of its
    own: what changes is looked at here, not how long a picture takes.
    """
    folder = tmp_path_factory.mktemp("prepared")
    with Image.open(io.BytesIO(sample()[0])) as image:
        image.crop((192, 0, 320, 128)).save(folder / "sample.png")
    publish(folder / "origin", folder / "first", folder / "sample.png", bias=0.0, cache=warm_cache)
    done = ternaus(
        "models", "copy", MODEL, "--from", str(folder / "origin"), "--store", str(folder / "store")
    )
    assert done.returncode == 0, done.stderr
    publish(folder / "store", folder / "second", folder / "sample.png", bias=1.5, cache=warm_cache)
    return folder / "store"


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    """A store that holds version 1 alone."""
    shutil.copytree(prepared / MODEL / "1", tmp_path / "store" / MODEL / "1")
    return tmp_path / "store"


def add(prepared: Path, store: Path, version: int = 2) -> None:
    """Version 2 is published in the running server's store."""
    origin = ModelStore(prepared)
    label = f"{MODEL}@2"
    assert (
        ModelStore(store).publish(MODEL, origin.manifest(label).draft(), origin.fetch(label))
        == version
    )


def picture_of(prepared: Path) -> bytes:
    return (prepared / MODEL / "1" / "sample.png").read_bytes()


def expected(prepared: Path, version: int) -> NDArray[np.bool_]:
    with Image.open(prepared / MODEL / str(version) / "sample.mask.png") as image:
        return np.asarray(image) > 0


class Stream:
    """One picture after the other; the version of each answer, whose own mask it must be."""

    def __init__(self, process: Process, prepared: Path) -> None:
        self.versions: list[int] = []
        self.wrong: list[str] = []
        self._masks, self._process = masks_of(prepared), process
        self._picture = picture_of(prepared)
        self._ending = threading.Event()
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with client_of(self._process) as client:
            while not self._ending.is_set():
                answer = client.post("/segment", content=self._picture)
                with self._grown:
                    self._look(answer)
                    self._grown.notify_all()

    def _look(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code} {answer.text}")
            return
        version = int(answer.headers["x-model"].removeprefix(f"{MODEL}@"))
        self.versions.append(version)
        with Image.open(io.BytesIO(answer.content)) as image:
            scores = {v: agree(np.asarray(image) > 0, mask) for v, mask in self._masks.items()}
        if max(scores, key=lambda v: scores[v]) != version or scores[version] < 0.98:
            self.wrong.append(f"version {version} gave a mask of {scores}")

    def wait(self, count: int) -> None:
        """Until so many more answers have come."""
        with self._grown:
            until = len(self.versions) + count
            done = self._grown.wait_for(lambda: self.wrong or len(self.versions) >= until, 240)
        assert done
        assert not self.wrong, self.wrong

    @contextlib.contextmanager
    def flowing(self) -> Iterator[Stream]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            self._thread.join(120)
        assert not self.wrong, self.wrong


@contextlib.contextmanager
def server_of(store: Path, cache: str, **environment: str) -> Iterator[Process]:
    with serving(
        "--store", str(store), TERNAUS_CACHE_DIR=cache, TERNAUS_DRAIN_GRACE_S="0", **environment
    ) as process:
        process.wait_ready()
        ready: set[int] = set()
        while len(ready) < int(environment.get("TERNAUS_FRONTENDS", "1")):
            assert process.popen.poll() is None, process.text
            with client_of(process) as client:  # the kernel chooses who answers
                health = client.get("/health").json()
            if health["ready"]:
                ready.add(health["process"])
        yield process


def masks_of(prepared: Path) -> dict[int, NDArray[np.bool_]]:
    masks = {version: expected(prepared, version) for version in (1, 2)}
    assert agree(masks[1], masks[2]) < 0.9, "the versions cannot be told apart"
    return masks


def memory_mb(process: Process, field: str = "VmRSS") -> float:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_new_version_takes_over_under_load_and_a_damaged_one_does_not(
    prepared: Path, store: Path, warm_cache: str, frontends: str
) -> None:
    with server_of(
        store, warm_cache, TERNAUS_ADMIN_KEY="sesame", TERNAUS_FRONTENDS=frontends
    ) as process:
        with Stream(process, prepared).flowing() as stream, client_of(process) as admin:
            stream.wait(3)
            add(prepared, store)
            answer = admin.post(f"/models/{MODEL}/load", headers=ADMIN)
            assert answer.status_code == 200, answer.text
            assert answer.json()["replaced"] == f"{MODEL}@1"
            assert answer.json()["model"]["version"] == 2
            stream.wait(3)

            add(prepared, store, 3)
            weights = store / MODEL / "3" / "weights.safetensors"
            weights.chmod(0o644)
            content = bytearray(weights.read_bytes())
            content[-1000] ^= 1
            weights.write_bytes(content)
            answer = admin.post(f"/models/{MODEL}/load", headers=ADMIN)
            assert answer.status_code == 500
            assert answer.json()["code"] == "model_damaged"
            stream.wait(3)

            health = admin.get("/health").json()
            assert health["ready"]
            assert [model["version"] for model in health["models"]] == [2]
            assert "weights.safetensors" in health["failures"][f"{MODEL}@3"]
            assert admin.get("/health/ready").status_code == 200
            figures = admin.get("/metrics").text
            assert f'ternaus_model_loads_total{{name="{MODEL}",result="loaded"}} 1.0' in figures
            assert f'ternaus_model_loads_total{{name="{MODEL}",result="failed"}} 1.0' in figures
            infos = [x for x in figures.splitlines() if x.startswith("ternaus_model_info{")]
            assert len(infos) == 1
            assert 'version="2"' in infos[0]
        # It flipped once and never back: masks and names agree throughout.
        assert stream.versions == sorted(stream.versions)
        assert set(stream.versions) == {1, 2}
        assert f"{MODEL}@1 is closed" in process.text
        process.terminate()
        assert process.wait_exit() == 0, process.text


def test_store_is_watched(prepared: Path, store: Path, warm_cache: str) -> None:
    with server_of(store, warm_cache, TERNAUS_WATCH_STORE_S="0.2") as process:
        with Stream(process, prepared).flowing() as stream:
            stream.wait(2)
            add(prepared, store)
            while 2 not in stream.versions:
                stream.wait(1)
            stream.wait(2)
        assert stream.versions == sorted(stream.versions)
        with client_of(process) as client:
            assert client.post(f"/models/{MODEL}/load").status_code == 404


def test_memory_does_not_grow_with_changes(prepared: Path, store: Path, warm_cache: str) -> None:
    """To and fro: each time the old engine's memory is given back."""
    add(prepared, store)
    data = picture_of(prepared)
    with server_of(
        store, warm_cache, TERNAUS_ADMIN_KEY="sesame", TERNAUS_ENGINE_THREADS="1"
    ) as process:
        with client_of(process) as admin:

            def change(version: int) -> float:
                answer = admin.post(f"/models/{MODEL}/load?version={version}", headers=ADMIN)
                assert answer.status_code == 200, answer.text
                assert admin.post("/segment", content=data).status_code == 200
                until = time.monotonic() + 60
                while admin.get("/metrics").text.count("ternaus_model_info{") > 1:
                    assert time.monotonic() < until, "the old engine is not closed"
                return memory_mb(process)

            first = max(change(version) for version in (1, 2))
            last = min([change(version) for version in (1, 2, 1, 2, 1, 2)][-2:])
        print(f"resident: {first:.0f} MB after two changes, {last:.0f} MB after eight")
        # An engine that stayed would be 100 MB each.
        assert last < first + 150
        assert memory_mb(process, "VmHWM") < 1500
