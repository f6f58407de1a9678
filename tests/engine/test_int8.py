"""int8: taken where a model's own sample allows it, never otherwise."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.engine import conversion
from app.engine.agreement import Tolerance
from app.engine.choose import EngineOptions, open_engine
from app.engine.self_test import self_test
from app.engine.trials import GATES
from app.errors import EngineError
from app.store.store import ModelStore
from app.types import ModelSpec, Pixels
from tests.engine.plain import unpacked

pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("nncf", reason="the extra `int8` is not installed")

STORE = Path(__file__).parents[2] / "model_store"


def options(cache_dir: Path) -> EngineOptions:
    return EngineOptions(
        device="cpu", backend="openvino", precision="int8", batch_sizes=(1,), cache_dir=cache_dir
    )


def test_shipped_model_keeps_its_mask_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelStore(STORE).resolve("buildings")
    with Image.open(spec.sample_picture) as image, Image.open(spec.sample_mask) as mask:
        sample, expected = np.asarray(image.convert("RGB")), np.asarray(mask) > 0
    # Whether it is faster depends on the processor; whether it agrees does not.
    monkeypatch.setattr("app.engine.trials.WORTH", 100.0)
    engine = open_engine(spec, options(tmp_path), sample=sample)
    said = engine.describe()
    assert said["precision"] == "int8"
    assert said["trials"]["int8"]["accepted"]
    assert 0.98 <= said["trials"]["int8"]["iou"] < 1
    found = self_test(engine, sample, expected[None])
    assert found.iou == pytest.approx(said["trials"]["int8"]["iou"], abs=0.005)
    # The weights are a quarter of what they were.
    folders = {p.name.split("-")[1] == "int8": p for p in tmp_path.glob("openvino-*")}
    sizes = {int8: (path / "model.bin").stat().st_size for int8, path in folders.items()}
    assert sizes[True] < 0.3 * sizes[False]
    first = engine.infer(sample[None], np.array([spec.threshold], np.float32))
    engine.close()
    # Warm: nothing is converted, quantised or tried.
    monkeypatch.setattr(conversion, "in_a_child", None)
    monkeypatch.setattr(conversion, "fill", None)
    again = open_engine(spec, options(tmp_path), sample=sample)
    assert again.describe()["trials"] == said["trials"]
    second = again.infer(sample[None], np.array([spec.threshold], np.float32))
    again.close()
    width = sample.shape[1]
    assert np.array_equal(unpacked(first.bits, width), unpacked(second.bits, width))


def test_model_whose_masks_differ_is_served_as_if_int8_was_not_asked_for(
    specs: dict[str, ModelSpec],
    drawn_dir: Path,
    tiles: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(GATES, "int8", Tolerance(changed=0.0, iou=1.0, spare=0.0))
    with caplog.at_level(logging.WARNING, "ternaus.engine"):
        engine = open_engine(specs["binary"], options(drawn_dir), sample=tiles[0])
    said = engine.describe()
    engine.close()
    assert said["precision"] in ("float32", "bfloat16")
    assert said["trials"]["int8"]["accepted"] is False
    assert "int8 is not taken" in caplog.text


def test_int8_where_it_cannot_be_says_why(
    specs: dict[str, ModelSpec], drawn_dir: Path, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_cpu = EngineOptions(device="cpu", backend="torch", precision="int8", batch_sizes=(1,))
    with pytest.raises(EngineError, match="int8 is for OpenVINO on the CPU, not for torch"):
        open_engine(specs["binary"], torch_cpu, sample=tiles[0])
    with pytest.raises(EngineError, match="needs the model's sample"):
        open_engine(specs["binary"], options(drawn_dir))
    monkeypatch.setattr(
        conversion, "find_spec", lambda name: None if name == "nncf" else find_spec(name)
    )
    with pytest.raises(EngineError, match=r"ternausnet-serve\[int8\]"):
        open_engine(specs["binary"], options(drawn_dir), sample=tiles[0])
