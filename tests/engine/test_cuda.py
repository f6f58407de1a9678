"""The CUDA engine on a real device. What needs none has its twin in test_contract.py,
test_core.py and test_small_parts.py."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.base import Engine
from app.engine.choose import EngineOptions, open_engine
from app.errors import DeviceOutOfMemory, InferenceFailed
from app.types import ModelSpec, Pixels
from tests.engine.plain import limits, unpacked

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def cuda_engines(specs: dict[str, ModelSpec]) -> Iterator[dict[str, Engine]]:
    options = EngineOptions(device="cuda", precision="float32", batch_sizes=(1, 2, 4))
    engines = {task: open_engine(spec, options) for task, spec in specs.items()}
    yield engines
    for engine in engines.values():
        engine.close()


def test_float32_is_not_rounded_to_ten_bits(cuda_engines: Any) -> None:
    assert cuda_engines["binary"].describe()["precision"] == "float32"
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("captured", [False, True])
def test_masks_are_those_of_the_cpu(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels, task: str, captured: bool
) -> None:
    engine = cuda_engines[task]
    if captured:
        engine.prepare(64, 96, 2)
        assert (2, 64, 96) in engine.describe()["shapes"]
    found = engine.infer(tiles, limits(0.3, 0.55))
    expected = torch_engines[task].infer(tiles, limits(0.3, 0.55))
    assert found.finite.tolist() == [True, True]
    if task == "multiclass":
        assert (found.labels != expected.labels).mean() < 1e-3
    else:
        assert (unpacked(found.bits, 96) != unpacked(expected.bits, 96)).mean() < 1e-3


def test_probability_is_that_of_the_cpu(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels
) -> None:
    found = cuda_engines["binary"].infer(tiles, limits(0.5, 0.5), probability=True)
    expected = torch_engines["binary"].infer(tiles, limits(0.5, 0.5), probability=True)
    step = np.abs(found.probability.astype(int) - expected.probability)
    assert step.max() <= 1


def test_layers_in_one_kernel_are_told_of_each_shape(cuda_engines: Any, tiles: Pixels) -> None:
    engine = cuda_engines["binary"]
    before = engine.infer(tiles[:, :32], limits(0.5, 0.5)).bits
    engine.prepare(32, 96, 2)
    after = engine.infer(tiles[:, :32], limits(0.5, 0.5)).bits
    known = engine.describe()
    counts = dict(zip(known["shapes"], known["fused_layers"], strict=True))
    # Which of the 14 pay is the device's own matter.
    assert 0 <= counts[2, 32, 96] <= 14
    assert (unpacked(after, 96) != unpacked(before, 96)).mean() < 1e-3


def test_a_replay_reads_new_pixels_and_overwrites_no_result(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels
) -> None:
    engine = cuda_engines["binary"]
    engine.prepare(64, 96, 2)
    first = engine.infer(tiles, limits(0.5, 0.5))
    held = first.bits.copy()
    second = engine.infer(255 - tiles, limits(0.5, 0.5))
    np.testing.assert_array_equal(first.bits, held)
    expected = torch_engines["binary"].infer(255 - tiles, limits(0.5, 0.5))
    assert (unpacked(second.bits, 96) != unpacked(expected.bits, 96)).mean() < 1e-3


def test_graphs_of_several_shapes_share_a_pool_in_any_order(
    cuda_engines: Any, tiles: Pixels
) -> None:
    engine = cuda_engines["multilabel"]
    shapes = [(64, 96), (32, 64), (64, 64)]
    eager = {s: engine.infer(tiles[:, : s[0], : s[1]], limits(0.5, 0.5)).bits for s in shapes}
    for height, width in shapes:
        engine.prepare(height, width, 2)
    for shape in [*shapes, *reversed(shapes)]:
        found = engine.infer(tiles[:, : shape[0], : shape[1]], limits(0.5, 0.5)).bits
        width = shape[1]
        assert (unpacked(found, width) != unpacked(eager[shape], width)).mean() < 1e-3


def test_a_batch_of_three_rides_in_a_graph_of_four(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels
) -> None:
    engine = cuda_engines["binary"]
    engine.prepare(64, 96, 4)
    three = np.concatenate([tiles, 255 - tiles[:1]])
    found = engine.infer(three, limits(0.5, 0.4, 0.6))
    assert found.bits.shape[0] == 3
    assert found.finite.shape == (3,)
    expected = torch_engines["binary"].infer(three, limits(0.5, 0.4, 0.6))
    assert (unpacked(found.bits, 96) != unpacked(expected.bits, 96)).mean() < 1e-3


@pytest.mark.parametrize("captured", [False, True])
def test_a_staged_batch_goes_up_beside_the_one_before_it(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels, captured: bool
) -> None:
    engine, expected = cuda_engines["binary"], torch_engines["binary"]
    if captured:
        engine.prepare(64, 96, 2)
    else:
        # A width that no test prepares.
        tiles = np.ascontiguousarray(tiles[:, :, :32])
    width = tiles.shape[2]
    assert ((2, 64, width) in engine.describe()["shapes"]) == captured
    first, second = engine.stage(list(tiles)), engine.stage(list(255 - tiles))
    # What becomes of the host's memory once a batch is up is nobody's business.
    for pixels, batch in ((tiles, first), (255 - tiles, second)):
        found = engine.infer(batch, limits(0.5, 0.5)).bits
        wanted = expected.infer(pixels, limits(0.5, 0.5)).bits
        assert (unpacked(found, width) != unpacked(wanted, width)).mean() < 1e-3
    # A batch that was given up, one in parts, and one that is computed twice.
    engine.stage(list(tiles))
    batch = engine.stage(list(255 - tiles))
    wanted = expected.infer(255 - tiles, limits(0.5, 0.5)).bits
    parts = [engine.infer(batch[i : i + 1], limits(0.5)).bits for i in range(2)]
    again = engine.infer(batch, limits(0.5, 0.5)).bits
    for found in (np.concatenate(parts), again):
        assert (unpacked(found, width) != unpacked(wanted, width)).mean() < 1e-3


def test_staging_beside_a_computing_batch_from_another_thread(
    cuda_engines: Any, torch_engines: Any, tiles: Pixels
) -> None:
    engine = cuda_engines["binary"]
    engine.prepare(64, 96, 2)
    turns = [tiles, 255 - tiles, tiles[::-1]] * 10
    wanted = [torch_engines["binary"].infer(t, limits(0.5, 0.5)).bits for t in turns[:3]]
    with ThreadPoolExecutor(1) as stager:
        coming = stager.submit(engine.stage, list(turns[0]))
        for place, after in enumerate([*turns[1:], turns[0]]):
            batch = coming.result()
            coming = stager.submit(engine.stage, list(after))
            found = engine.infer(batch, limits(0.5, 0.5)).bits
            assert (unpacked(found, 96) != unpacked(wanted[place % 3], 96)).mean() < 1e-3


def test_out_of_memory_leaves_the_engine_usable(cuda_engines: Any, tiles: Pixels) -> None:
    engine = cuda_engines["binary"]
    expected = engine.infer(tiles, limits(0.5, 0.5)).bits
    total = torch.cuda.get_device_properties(0).total_memory
    # The encoder alone holds two maps of 64 float32 channels at full size.
    side = int((total / (64 * 4)) ** 0.5) // 32 * 32
    with pytest.raises(DeviceOutOfMemory, match="no memory for infer") as caught:
        engine.infer(np.zeros((1, side, side, 3), np.uint8), limits(0.5))
    # While the error is at hand, as it is to whoever tries the halves.
    assert caught.value.__traceback__ is not None
    free, _ = torch.cuda.mem_get_info(0)
    assert free > total / 2
    again = engine.infer(tiles, limits(0.5, 0.5)).bits
    assert (unpacked(again, 96) != unpacked(expected, 96)).mean() < 1e-3


def test_bfloat16_stays_near_float32(
    specs: dict[str, ModelSpec], cuda_engines: Any, tiles: Pixels
) -> None:
    options = EngineOptions(device="cuda", precision="bfloat16", batch_sizes=(1, 2))
    engine = open_engine(specs["binary"], options)
    found = engine.infer(tiles, limits(0.5, 0.5), probability=True)
    expected = cuda_engines["binary"].infer(tiles, limits(0.5, 0.5), probability=True)
    assert found.probability is not None
    assert np.abs(found.probability.astype(int) - expected.probability).mean() < 3
    engine.close()
    engine.close()
    with pytest.raises(InferenceFailed, match="closed"):
        engine.infer(tiles, limits(0.5, 0.5))
