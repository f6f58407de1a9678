"""What the contract promises, for every engine of the CPU; the CUDA twins are in test_cuda.py."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine.base import Engine
from app.errors import InferenceFailed
from app.types import ModelSpec, Pixels
from tests.engine.conftest import WriteSpec, random_net
from tests.engine.plain import limits, probabilities, unpacked

Engines = Mapping[str, Engine]


def test_engine_honours_the_protocol(engines: Engines) -> None:
    engine = engines["binary"]
    assert isinstance(engine, Engine)
    assert engine.batch_sizes[0] == 1
    known = engine.describe()
    assert {"backend", "device", "device_name", "precision", "threads", "shapes"} <= known.keys()
    assert known["precision"] == "float32"


def test_staged_tiles_are_a_batch_like_any_other(engines: Engines, tiles: Pixels) -> None:
    engine = engines["binary"]
    # As they come: parts of larger pictures, and memory that nobody may write to.
    wide = np.concatenate([tiles, tiles], axis=2)
    wide.setflags(write=False)
    batch = engine.stage([wide[0, :, 96:], wide[1, :, :96]])
    np.testing.assert_array_equal(batch, tiles)
    expected = engine.infer(tiles, limits(0.5, 0.4)).bits
    np.testing.assert_array_equal(engine.infer(batch, limits(0.5, 0.4)).bits, expected)
    alone = engine.infer(engine.stage([wide[1, :, 96:]]), limits(0.4)).bits
    assert alone is not None
    assert expected is not None
    np.testing.assert_array_equal(alone[0], expected[1])


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_mask_is_the_plain_module_above_the_threshold_of_each_item(
    engines: Engines, tiles: Pixels, task: str
) -> None:
    engine = engines[task]
    t = limits(0.3, 0.55)
    result = engine.infer(tiles, t)
    p = probabilities(random_net(engine.spec.channels), engine.spec, tiles)
    expected = p > t[:, None, None, None]
    assert 0.02 < expected.mean() < 0.98
    assert result.labels is None
    assert result.probability is None
    assert result.bits is not None
    assert result.bits.shape == (2, engine.spec.channels, 64, 12)
    assert result.finite.tolist() == [True, True]
    differing = unpacked(result.bits, 96) != expected
    assert (np.abs(p - t[:, None, None, None])[differing] < 1e-4).all()
    assert differing.mean() < 1e-3


def test_labels_are_the_largest_of_the_plain_module(engines: Engines, tiles: Pixels) -> None:
    engine = engines["multiclass"]
    result = engine.infer(tiles, limits(0.5, 0.5))
    p = probabilities(random_net(4), engine.spec, tiles)
    assert result.bits is None
    assert result.labels is not None
    assert result.labels.shape == (2, 64, 96)
    assert result.labels.dtype == np.uint8
    differing = result.labels != p.argmax(axis=1)
    top = np.sort(p, axis=1)
    assert ((top[:, -1] - top[:, -2])[differing] < 1e-4).all()
    assert len(np.unique(result.labels)) > 1


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
def test_probability_is_the_rounded_byte(engines: Engines, tiles: Pixels, task: str) -> None:
    engine = engines[task]
    result = engine.infer(tiles, limits(0.5, 0.5), probability=True)
    p = probabilities(random_net(engine.spec.channels), engine.spec, tiles)
    assert result.probability is not None
    assert result.probability.dtype == np.uint8
    assert result.probability.shape == p.shape
    assert np.abs(result.probability - p * 255).max() <= 0.5 + 255 * 1e-4


def test_batch_is_the_single_tiles(engines: Engines, tiles: Pixels) -> None:
    engine = engines["binary"]
    together = engine.infer(tiles, limits(0.5, 0.5), probability=True)
    for index in range(2):
        alone = engine.infer(tiles[index : index + 1], limits(0.5), probability=True)
        assert alone.bits is not None
        assert together.bits is not None
        assert alone.probability is not None
        assert together.probability is not None
        assert (unpacked(alone.bits, 96)[0] != unpacked(together.bits, 96)[index]).mean() < 1e-3
        step = alone.probability[0].astype(int) - together.probability[index]
        assert np.abs(step).max() <= 1


def test_results_are_not_overwritten_by_later_calls(engines: Engines, tiles: Pixels) -> None:
    for task in ("binary", "multiclass"):
        first = engines[task].infer(tiles, limits(0.5, 0.5), probability=True)
        held = [
            a for a in (first.bits, first.labels, first.probability, first.finite) if a is not None
        ]
        before = [array.copy() for array in held]
        engines[task].infer(255 - tiles, limits(0.1, 0.9), probability=True)
        for array, copy in zip(held, before, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_pixels_may_be_read_only_or_strided(engines: Engines, tiles: Pixels) -> None:
    engine = engines["binary"]
    expected = engine.infer(tiles, limits(0.5, 0.5))
    frozen = tiles.copy()
    frozen.flags.writeable = False
    wide = np.repeat(tiles, 2, axis=2)[:, :, ::2]
    for pixels in (frozen, wide):
        np.testing.assert_array_equal(engine.infer(pixels, limits(0.5, 0.5)).bits, expected.bits)
    np.testing.assert_array_equal(frozen, tiles)


def test_prepare_is_harmless_before_and_after(engines: Engines, tiles: Pixels) -> None:
    engine = engines["binary"]
    engine.prepare(64, 96, 2)
    first = engine.infer(tiles, limits(0.5, 0.5))
    engine.prepare(64, 96, 2)
    np.testing.assert_array_equal(engine.infer(tiles, limits(0.5, 0.5)).bits, first.bits)


def test_prepare_from_another_thread_changes_nothing(engines: Engines, tiles: Pixels) -> None:
    engine = engines["binary"]
    expected = engine.infer(tiles, limits(0.5, 0.5))
    errors: list[BaseException] = []

    def prepare() -> None:
        try:
            for side in (32, 64, 96, 128, 160):
                engine.prepare(side, 32, 1)
        except BaseException as exc:  # told below, in the test's own thread
            errors.append(exc)

    thread = threading.Thread(target=prepare)
    thread.start()
    while thread.is_alive():
        result = engine.infer(tiles, limits(0.5, 0.5))
        np.testing.assert_array_equal(result.bits, expected.bits)
    thread.join()
    assert not errors


def test_the_gil_is_free_while_the_device_works(engines: Engines) -> None:
    engine = engines["binary"]
    pixels = np.zeros((1, 128, 128, 3), np.uint8)
    engine.infer(pixels, limits(0.5))
    done = threading.Event()
    began = threading.Event()
    counts = [0]

    def count() -> None:
        began.set()
        while not done.is_set():
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    began.wait()
    before = counts[0]
    engine.infer(pixels, limits(0.5))
    during = counts[0] - before
    done.set()
    thread.join()
    # Held, the GIL would let the other thread run for a slice of 5 ms or two.
    assert during > 50_000


@pytest.mark.parametrize(
    ("pixels", "thresholds", "words"),
    [
        (np.zeros((1, 40, 64, 3), np.uint8), limits(0.5), "multiples of 32"),
        (np.zeros((1, 64, 64), np.uint8), limits(0.5), "pixels (N, H, W, 3) uint8"),
        (np.zeros((0, 64, 64, 3), np.uint8), limits(), "pixels (N, H, W, 3) uint8"),
        (np.zeros((1, 64, 64, 3), np.float32), limits(0.5), "float32"),
        (np.zeros((2, 64, 64, 3), np.uint8), limits(0.5), "thresholds (2,) float32"),
        (np.zeros((1, 64, 64, 3), np.uint8), np.array([0.5]), "not (1,) float64"),
    ],
)
def test_wrong_batches_are_refused_by_name(
    engines: Engines, pixels: Pixels, thresholds: NDArray[np.float32], words: str
) -> None:
    with pytest.raises(InferenceFailed) as caught:
        engines["binary"].infer(pixels, thresholds)
    assert words in caught.value.detail


def _flat(state: dict[str, torch.Tensor]) -> None:
    state["final.weight"] *= 0
    state["final.bias"] *= 0


def _overflowing(state: dict[str, torch.Tensor]) -> None:
    state["final.weight"] = torch.full(state["final.weight"].shape, 3e38)


def _open(backend: str, spec: ModelSpec, cache_dir: Path) -> Engine:
    if backend == "torch":
        from app.engine.torch_engine import TorchEngine

        return TorchEngine(spec, precision="float32")
    pytest.importorskip("openvino")
    from app.engine.openvino_cpu import OpenVinoEngine

    return OpenVinoEngine(spec, precision="float32", cache_dir=cache_dir)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_equality_is_not_above_the_threshold(
    backend: str, write_spec: WriteSpec, cache_dir: Path, tiles: Pixels
) -> None:
    engine = _open(backend, write_spec(change=_flat), cache_dir)
    result = engine.infer(tiles, limits(0.5, 0.4999), probability=True)
    assert result.bits is not None
    assert (result.bits[0] == 0).all()
    assert (result.bits[1] == 255).all()
    assert result.probability is not None
    # 127.5 goes to the even neighbour.
    assert (result.probability == 128).all()
    engine.close()
    engine.close()
    with pytest.raises(InferenceFailed, match="closed"):
        engine.infer(tiles, limits(0.5, 0.5))


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_infinite_logits_are_reported(
    backend: str, write_spec: WriteSpec, cache_dir: Path, tiles: Pixels
) -> None:
    engine = _open(backend, write_spec(change=_overflowing), cache_dir)
    assert engine.infer(tiles, limits(0.5, 0.5)).finite.tolist() == [False, False]
    engine.close()
