"""On a Ray of this machine: the same masks as without it."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.assembly import engines_of, store_of
from app.encodings import base as encodings
from app.serving.segmenter import Ask
from app.settings import Settings
from app.training.segmenters import EngineSegmenter
from tests.server import encoded

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

STORE = Path(__file__).parents[2] / "model_store"
SAMPLE = next(STORE.glob("buildings/*/sample.jpg"))

pytestmark = [
    pytest.mark.journey,
    pytest.mark.timeout(600),
    # What Ray and its own libraries warn of is theirs to mend.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model_store": str(STORE),
        "models": "buildings",
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "precision": "float32",
    }


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    with Image.open(SAMPLE) as image:
        pixels = np.asarray(image.convert("RGB"))
    return {
        "whole.png": encoded(pixels[:256, :320]),
        "small.png": encoded(pixels[100:197, 60:191]),
        "damaged.jpg": SAMPLE.read_bytes()[:900],
        "other.jpg": encoded(pixels[-256:, -256:], "JPEG", quality=90),
    }


@pytest.fixture(scope="module")
def truths(options: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, np.ndarray]:
    settings = Settings.read(**options)
    engine = engines_of(settings)(store_of(settings).resolve("buildings"), None, None)  # type: ignore[arg-type]
    segmenter = EngineSegmenter(engine, probability=False)
    try:
        return {
            name: segmenter.segment(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).planes[
                0
            ]
            for name, data in pictures.items()
            if name != "damaged.jpg"
        }
    finally:
        engine.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


def same(mask: np.ndarray, truth: np.ndarray) -> None:
    assert mask.shape == truth.shape
    # Two runs of one engine may form other batches; their sums differ in the last bit.
    assert (mask != truth).mean() < 1e-4
    assert 0.01 < truth.mean() < 0.99


@pytest.mark.usefixtures("cluster")
def test_job_gives_the_masks_and_names_what_is_damaged(
    tmp_path: Path,
    options: dict[str, Any],
    pictures: dict[str, bytes],
    truths: dict[str, np.ndarray],
) -> None:
    from app.cluster.batch import segment

    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    files = ray.data.read_binary_files(str(tmp_path), include_paths=True)
    rows = segment(
        files, options, ask=Ask(format="rle"), workers=2, num_cpus=1, batch_size=2
    ).take_all()
    found = {Path(row["path"]).name: row for row in rows}
    assert set(found) == set(pictures)
    assert all("bytes" not in row for row in rows)
    damaged = found.pop("damaged.jpg")
    assert damaged["error"].startswith("picture_damaged: ")
    assert (damaged["mask"], damaged["model"]) == (b"", "")
    for name, row in found.items():
        assert row["error"] == ""
        assert row["model"].startswith("buildings@")
        mask = encodings.get("rle").decode(row["mask"], truths[name].shape)[0]
        same(mask.astype(bool), truths[name])


@pytest.mark.usefixtures("cluster")
def test_deployment_answers_like_the_server(
    options: dict[str, Any], pictures: dict[str, bytes], truths: dict[str, np.ndarray]
) -> None:
    from ray import serve

    from app.cluster.deployment import application

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(application({**options, "num_cpus": 1}), name="masks", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            assert http.get("/health/ready").status_code == 200
            for name, truth in truths.items():
                answer = http.post("/segment", content=pictures[name])
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-model"].startswith("buildings@")
                same(np.asarray(Image.open(io.BytesIO(answer.content))) > 0, truth)
            refused = http.post("/segment", content=pictures["damaged.jpg"])
            assert refused.status_code == 422
            assert refused.json()["code"] == "picture_damaged"
    finally:
        serve.shutdown()
