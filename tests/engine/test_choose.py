"""What is asked, what is there, and what is found out once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.choose import EngineOptions, driver_present, open_engine
from app.engine.findings import recall
from app.engine.self_test import self_test
from app.engine.timings import Timings
from app.errors import EngineError
from app.types import ModelSpec, Pixels
from tests.engine.conftest import WriteSpec
from tests.engine.plain import limits, unpacked

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"device": "tpu"}, "known: auto, cpu, cuda"),
        ({"device": "cuda:x"}, "known: auto, cpu, cuda"),
        ({"backend": "onnx"}, "known: auto, openvino, torch"),
        ({"precision": "int4"}, "known: auto, float32, bfloat16, int8"),
        ({"threads": -1}, "0 (all) or more"),
        ({"batch_sizes": (4, 2)}, "must ascend"),
        ({"batch_sizes": (0, 2)}, "must ascend"),
    ],
)
def test_unknown_values_are_refused_with_the_known_ones(values: Any, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        EngineOptions(**values)
    assert words in caught.value.detail


def test_openvino_on_cuda_is_refused(specs: dict[str, ModelSpec]) -> None:
    with pytest.raises(EngineError, match="do not go together"):
        open_engine(specs["binary"], EngineOptions(device="cuda", backend="openvino"))


@without_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_without_cuda_says_what_is_there(specs: dict[str, ModelSpec], device: str) -> None:
    with pytest.raises(EngineError, match=f"`device` {device} was asked for; CUDA devices here: 0"):
        open_engine(specs["binary"], EngineOptions(device=device))


@pytest.mark.skipif(find_spec("openvino") is not None, reason="openvino is installed")
def test_openvino_that_is_not_installed_is_named(specs: dict[str, ModelSpec]) -> None:
    with pytest.raises(EngineError, match="not installed"):
        open_engine(specs["binary"], EngineOptions(device="cpu", backend="openvino"))


def test_a_driver_shows_itself_by_a_file(tmp_path: Path) -> None:
    assert not driver_present((str(tmp_path / "absent"),))
    assert driver_present((str(tmp_path / "absent"), str(tmp_path)))


def test_the_cpu_takes_openvino_where_it_is_and_torch_where_named(
    specs: dict[str, ModelSpec], cache_dir: Path
) -> None:
    options = EngineOptions(device="cpu", batch_sizes=(1,), cache_dir=cache_dir)
    engine = open_engine(specs["binary"], options)
    expected = "openvino" if find_spec("openvino") is not None else "torch"
    assert engine.describe()["backend"] == expected
    engine.close()
    engine = open_engine(specs["binary"], replace(options, backend="torch"))
    assert engine.describe()["backend"] == "torch"
    assert engine.describe()["precision"] == "float32"
    engine.close()


def test_findings_are_kept_and_recalled(
    specs: dict[str, ModelSpec], tmp_path: Path, tiles: Pixels
) -> None:
    options = EngineOptions(device="cpu", backend="torch", batch_sizes=(1, 2), cache_dir=tmp_path)
    engine = open_engine(specs["binary"], options, sample=tiles[0])
    found = engine.describe()["precision"]
    engine.close()
    (file,) = tmp_path.glob("findings-*.json")
    facts = json.loads(file.read_text())
    assert facts["precision"] == found
    assert facts["batches"] == [1, 2]
    assert {"accepted", "changed", "iou", "time_ratio"} == facts["trials"]["bfloat16"].keys()
    # Told otherwise, the next opening believes the file: it has tried nothing.
    other = "float32" if found == "bfloat16" else "bfloat16"
    file.write_text(json.dumps({"precision": other, "batches": [1, 2]}))
    engine = open_engine(specs["binary"], options, sample=tiles[0])
    assert engine.batch_sizes == (1, 2)
    assert engine.describe()["precision"] == other
    engine.close()


def test_model_that_permits_float32_alone_is_not_tried_in_less(
    specs: dict[str, ModelSpec], tmp_path: Path, tiles: Pixels
) -> None:
    options = EngineOptions(device="cpu", backend="torch", batch_sizes=(1,), cache_dir=tmp_path)
    strict = replace(specs["binary"], precision="float32")
    engine = open_engine(strict, options, sample=tiles[0])
    assert engine.describe()["precision"] == "float32"
    engine.close()
    (file,) = tmp_path.glob("findings-*.json")
    assert "changed" not in json.loads(file.read_text()), "bfloat16 was tried"


def test_next_version_of_an_architecture_is_opened_without_measuring(
    specs: dict[str, ModelSpec], write_spec: WriteSpec, tmp_path: Path, tiles: Pixels
) -> None:
    options = EngineOptions(device="cpu", backend="torch", cache_dir=tmp_path)
    open_engine(specs["binary"], options, sample=tiles[0]).close()
    (file,) = tmp_path.glob("timings-*.json")
    # Told what no measurement would say, the next version believes it.
    file.write_text(
        json.dumps({"time_ratio": 0.5, "batches": {"bfloat16": [1, 3], "float32": [3]}})
    )
    # Other findings than version 1's: its threshold is another.
    second = write_spec("binary", version=2, threshold=0.4)
    engine = open_engine(second, options, sample=tiles[0])
    expected = {"bfloat16": (1, 3), "float32": (3,)}[str(engine.describe()["precision"])]
    assert engine.batch_sizes == expected
    engine.close()
    # Slower than float32, bfloat16 is not even placed.
    file.write_text(json.dumps({"time_ratio": 1.5, "batches": {"float32": [2]}}))
    third = write_spec("binary", version=3, threshold=0.3)
    engine = open_engine(third, options, sample=tiles[0])
    assert engine.describe()["precision"] == "float32"
    assert engine.batch_sizes == (2,)
    engine.close()
    assert len(list(tmp_path.glob("findings-*.json"))) == 3


def test_what_is_measured_beside_traffic_is_used_and_not_kept(
    specs: dict[str, ModelSpec], tmp_path: Path, tiles: Pixels
) -> None:
    options = EngineOptions(device="cpu", backend="torch", cache_dir=tmp_path)
    turns = 0

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        nonlocal turns
        turns += 1
        yield

    engine = open_engine(specs["binary"], options, sample=tiles[0], turn=turn)
    assert turns > 4
    assert not list(tmp_path.iterdir())
    engine.close()
    # Once the times are known, what the weights decide is kept, traffic or not.
    open_engine(specs["binary"], options, sample=tiles[0]).close()
    (kept,) = tmp_path.glob("timings-*.json")
    facts = json.loads(kept.read_text())
    facts["batches"] = {"bfloat16": [1], "float32": [1]}
    kept.write_text(json.dumps(facts))
    for file in tmp_path.glob("findings-*.json"):
        file.unlink()
    open_engine(specs["binary"], options, sample=tiles[0], turn=turn).close()
    assert len(list(tmp_path.glob("findings-*.json"))) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"time_ratio": "fast"}', '{"time_ratio": -1.0, "batches": {"float32": [0]}}',
     '{"time_ratio": true, "batches": [1]}'],
)  # fmt: skip
def test_damaged_timings_are_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "timings.json").write_text(text)
    assert Timings.of(recall(tmp_path / "timings.json")) == Timings()


def test_damaged_findings_are_found_anew(
    specs: dict[str, ModelSpec], tmp_path: Path, tiles: Pixels
) -> None:
    options = EngineOptions(
        device="cpu", backend="torch", precision="float32", batch_sizes=(1,), cache_dir=tmp_path
    )
    open_engine(specs["binary"], options).close()
    (file,) = tmp_path.glob("findings-*.json")
    before = file.read_text()
    file.write_text('{"precision": "int4", "batches": []}')
    open_engine(specs["binary"], options).close()
    assert file.read_text() == before


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_bfloat16_stays_near_float32(
    backend: Any, specs: dict[str, ModelSpec], cache_dir: Path, tiles: Pixels
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
        from app.engine.openvino_cpu import precisions

        if "bfloat16" not in precisions():
            with pytest.raises(EngineError, match="does not compute in bfloat16"):
                open_engine(
                    specs["binary"],
                    EngineOptions(backend="openvino", precision="bfloat16", batch_sizes=(1,)),
                )
            return
    results = []
    for precision in ("float32", "bfloat16"):
        options = EngineOptions(
            device="cpu",
            backend=backend,
            precision=precision,
            batch_sizes=(1,),
            cache_dir=cache_dir,
        )
        engine = open_engine(specs["binary"], options)
        assert engine.describe()["precision"] == precision
        results.append(engine.infer(tiles, limits(0.5, 0.5), probability=True))
        engine.close()
    full, reduced = results
    assert full.probability is not None
    assert reduced.probability is not None
    # Random weights amplify rounding more than trained ones do: a mask of noise at its threshold.
    step = np.abs(full.probability.astype(int) - reduced.probability)
    assert step.mean() < 3
    assert (unpacked(full.bits, 96) != unpacked(reduced.bits, 96)).mean() < 0.03


def test_a_model_passes_its_self_test_on_its_own_mask(
    specs: dict[str, ModelSpec], cache_dir: Path, tiles: Pixels, torch_engines: Any
) -> None:
    options = EngineOptions(device="cpu", batch_sizes=(1,), cache_dir=cache_dir)
    for task, spec in specs.items():
        engine = open_engine(spec, options)
        result = torch_engines[task].infer(tiles[:1], limits(spec.threshold))
        expected = result.labels[0] if task == "multiclass" else unpacked(result.bits, 96)[0]
        assert self_test(engine, tiles[0], expected).changed <= 5e-4
        engine.close()
