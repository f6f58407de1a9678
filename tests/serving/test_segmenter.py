"""The journey without HTTP: refusals by cost, memory that runs out, work that is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from app.encodings import base as encodings
from app.errors import DeadlineExceeded, DeviceOutOfMemory, ModelDamaged, PictureTooLarge
from app.serving.admission import Bounds
from app.serving.batcher import Batcher
from app.serving.device import LocalDevice
from app.serving.house import House, Rules
from app.serving.segmenter import Answer, Ask, Timings
from app.training.segmenters import EngineSegmenter
from app.types import Pixels
from tests.fakes import FakeEngine
from tests.server import encoded, picture, sampled, truth


def rules(**changes: Any) -> Rules:
    values: dict[str, Any] = {
        "bounds": Bounds(100, 10**8, 10**9, 10**9),
        "max_pixels": 10**8,
        "max_decoded_bytes": 10**9,
        "whole_pixels": 128 * 128,
        "tile": 128,
        "host_threads": 2,
        "canary_s": 0.0,
    }
    return Rules(**{**values, **changes})


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def opened(engine: FakeEngine, **changes: Any) -> House:
    house = House.local(
        rules(**changes), resolve=lambda label: engine.spec, open_engine=lambda spec, sample: engine
    )
    await house.open((engine.spec.name,))
    return house


def batcher_of(house: House) -> Batcher:
    assert isinstance(house.device, LocalDevice)
    return house.device.batcher


async def ask(house: House, data: bytes, *, seconds: float = 30.0, **options: Any) -> Answer:
    deadline = house.clock.now() + seconds
    with house.admission.admit(deadline=deadline, content_length=len(data)) as permit:
        return await house.segmenter.segment(
            data, Ask(**options), deadline=deadline, permit=permit, timings=Timings()
        )


def test_tile_that_does_not_fit_is_computed_in_smaller_ones(tmp_path: Path) -> None:
    def small_device(pixels: Pixels) -> None:
        if pixels.shape[1] * pixels.shape[2] > 96 * 96:
            raise DeviceOutOfMemory("full")

    async def scenario() -> None:
        house = await opened(FakeEngine(sampled(tmp_path), before=small_device))
        pixels = picture(128, 128)
        answer = await ask(house, encoded(pixels))
        assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
        await house.close()

    run(scenario())


def test_picture_that_takes_too_long_alone_is_told_so_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        house = await opened(engine)
        lane_pixels = 64 * 64
        batcher_of(house)._lanes.costs.observe("other", items=1, pixels=lane_pixels, seconds=2.0)
        before = len(engine.batches)
        with pytest.raises(
            DeadlineExceeded, match=r"alone needs about .* s of the device"
        ) as caught:
            await ask(house, encoded(picture(500, 500)), seconds=5.0)
        assert caught.value.limit == "TERNAUS_REQUEST_TIMEOUT_S"
        assert len(engine.batches) == before, "the device was bothered"
        # A prediction that is only somewhat too long is tried, so that it can be corrected.
        pixels = picture(64, 128)
        await ask(house, encoded(pixels), seconds=2.0)
        assert len(engine.batches) == before + 1
        await house.close()

    run(scenario())


def test_cancelled_request_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        house = await opened(engine, tiles_in_flight=2)
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(pixels: Pixels) -> None:
            loop.call_soon_threadsafe(reached.set)

        engine.before = tell
        task = asyncio.ensure_future(ask(house, encoded(picture(900, 900))))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.admission.requests == house.admission.bytes == house.admission.pixels == 0
        await house.close()
        tiles = (900 // 64) ** 2
        assert len(engine.batches) < tiles, "a request that was cancelled was computed to its end"

    run(scenario())


def test_net_with_aligned_corners_is_never_cut(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = sampled(tmp_path, parameters={"classes": 1, "align_corners": True})
        house = await opened(FakeEngine(spec))
        await ask(house, encoded(picture(100, 100)))
        with pytest.raises(PictureTooLarge, match="TERNAUS_WHOLE_PIXELS"):
            await ask(house, encoded(picture(300, 300)))
        await house.close()

    run(scenario())


def test_memory_of_tiles_is_bounded_by_tiles_in_flight(tmp_path: Path) -> None:
    async def scenario() -> None:
        most = 0
        engine = FakeEngine(sampled(tmp_path), sizes=(1,))
        house = await opened(engine, tiles_in_flight=3)

        def look(pixels: Pixels) -> None:
            nonlocal most
            most = max(most, int(batcher_of(house).figures()["tiles"]))

        engine.before = look
        pixels = picture(1000, 1000)
        answer = await ask(house, encoded(pixels))
        assert (encodings.get("png").decode(answer.body)[0] == truth(pixels)).all()
        assert most <= 3
        await house.close()

    run(scenario())


def test_canary_finds_a_device_that_lies(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(sampled(tmp_path))
        house = await opened(engine, canary_s=0.02)
        assert house.ready

        def lie(pixels: Pixels) -> None:
            pixels.setflags(write=True)
            np.invert(pixels, out=pixels)

        engine.before = lie
        for _ in range(400):
            await asyncio.sleep(0.01)
            if not house.able:
                break
        assert house.state == "failing"
        assert not house.ready
        await house.close()

    run(scenario())


@pytest.mark.parametrize("tile", [64, 1024])
def test_picture_larger_than_the_net_is_shown_comes_back_at_its_own_size(
    tmp_path: Path, tile: int
) -> None:
    pixels = picture(300, 437)
    red = torch.from_numpy(pixels[..., 0].copy())[None, None].float()
    # Pillow rounds between its two passes, and to whole numbers after each scaling.
    small = interpolate(red, size=(103, 150), mode="bilinear", antialias=True).round()
    large = interpolate(small, size=(300, 437), mode="bilinear")[0, 0].numpy()

    async def scenario() -> None:
        spec = sampled(tmp_path, longest_side=150)
        house = await opened(FakeEngine(spec), whole_pixels=tile * tile, tile=tile)
        for threshold in (0.3, 0.5):
            answer = await ask(house, encoded(pixels), threshold=threshold)
            mask = encodings.get("png").decode(answer.body)[0]
            clear = np.abs(large - 255 * threshold) > 2.5
            assert mask.shape == (300, 437)
            assert clear.mean() > 0.8
            assert ((large > 255 * threshold) == mask)[clear].all()
            assert 0.1 < mask.mean() < 0.9
        answer = await ask(house, encoded(pixels), format="npy")
        soft = encodings.get("npy").decode(answer.body)[0]
        assert np.abs(soft.astype(float) - large).max() <= 2.5
        scored = EngineSegmenter(FakeEngine(spec), whole_pixels=tile * tile, tile=tile)
        same = scored.segment(pixels)
        assert same.probability is not None
        assert np.array_equal(same.probability[0], soft)
        assert np.array_equal(same.planes[0], mask)
        # What is not larger is shown as it is.
        little = picture(150, 90)
        answer = await ask(house, encoded(little))
        assert np.array_equal(encodings.get("png").decode(answer.body)[0], truth(little))
        await house.close()

    run(scenario())


def test_scaled_memory_is_found_for_smaller_tiles(tmp_path: Path) -> None:
    def small_device(pixels: Pixels) -> None:
        if pixels.shape[1] * pixels.shape[2] > 96 * 96:
            raise DeviceOutOfMemory("full")

    async def scenario() -> None:
        spec = sampled(tmp_path, longest_side=128)
        pixels = picture(512, 512)
        masks = []
        for before in (small_device, lambda pixels: None):
            house = await opened(FakeEngine(spec, before=before))
            answer = await ask(house, encoded(pixels))
            masks.append(encodings.get("png").decode(answer.body)[0])
            await house.close()
        assert masks[0].shape == (512, 512)
        assert np.array_equal(*masks)

    run(scenario())


def test_sample_that_would_be_scaled_proves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ModelDamaged, match="proves nothing"):
            await opened(FakeEngine(sampled(tmp_path, longest_side=32)))

    run(scenario())
