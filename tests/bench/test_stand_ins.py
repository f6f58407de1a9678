"""The engines of the benchmarks honour the contract: what is measured is the real server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.engine.base import Engine
from app.errors import InferenceFailed
from app.serving.catalog import Sample
from benchmarks.stand_ins import NullEngine, SimulatedDevice, blobs, nothing_spec
from tests.server import encoded, picture, running


def test_null_engine_gives_its_own_sample(tmp_path: Path) -> None:
    engine = NullEngine(nothing_spec(tmp_path))
    assert isinstance(engine, Engine)
    Sample.of(engine.spec).test(engine)
    with pytest.raises(InferenceFailed, match="multiples of 32"):
        engine.infer(np.zeros((1, 33, 32, 3), np.uint8), np.zeros(1, np.float32))


def test_server_with_a_null_engine_serves_its_mask(tmp_path: Path) -> None:
    with running(tmp_path, NullEngine(nothing_spec(tmp_path))) as server:
        answer = server.post(encoded(picture(96, 160)))
    with Image.open(io.BytesIO(answer.content)) as mask:
        found = np.asarray(mask) > 0
    assert (np.packbits(found, axis=1) == blobs(96, 160)[0]).all()


def test_simulated_device_takes_its_time_by_the_pixels(tmp_path: Path) -> None:
    slept: list[float] = []
    device = SimulatedDevice(
        nothing_spec(tmp_path), pixels_per_s=10 * 64 * 64, launch_s=0.5, sleep=slept.append
    )
    device.infer(np.zeros((3, 64, 64, 3), np.uint8), np.zeros(3, np.float32))
    assert device.busy_s == pytest.approx(0.5 + 0.3)
    # What answering took is part of it.
    assert 0.5 < slept[0] <= 0.8
