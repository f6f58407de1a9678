"""A model is changed while others serve: who answers when, what is closed, and what fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from pathlib import Path
from typing import Any

import pytest

from app.encodings import base as encodings
from app.errors import (
    Draining,
    EngineError,
    InferenceFailed,
    ModelDamaged,
    ModelNeeded,
    ModelNotFound,
    NotReady,
    SelfTestFailed,
    StoreError,
)
from app.serving.changes import Changes
from app.serving.device import LocalDevice
from app.serving.house import House
from app.serving.lanes import Lane
from app.serving.served import Served
from app.types import ModelSpec, Pixels
from tests.server import THRESHOLDS, encoded, picture, truth
from tests.serving.test_segmenter import ask, batcher_of, rules
from tests.shelf import Shelf

PATIENCE = 60.0
LIMIT = 4 * PATIENCE
PIXELS = picture(64, 96)
DATA = encoded(PIXELS)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path)
    shelf.publish("fake", 1)
    return shelf


@contextlib.asynccontextmanager
async def house_of(
    shelf: Shelf, *labels: str, newer: tuple[int, ...] = (), **changes: Any
) -> AsyncIterator[House]:
    """A house that serves what is on the shelf; `newer` versions of `fake` are published then."""
    house = House.local(
        rules(**changes),
        resolve=shelf.resolve,
        open_engine=shelf.open_engine,
        newest=shelf.newest,
    )
    await house.open(labels or shelf.names())
    for version in newer:
        shelf.publish("fake", version)
    yield house
    await house.close()


def on_a_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The scenario as a test, which ends."""

    @functools.wraps(scenario)
    def test(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(scenario(**fixtures), LIMIT))

    return test


async def closed(shelf: Shelf, label: str) -> None:
    while not shelf.engine(label).closed:
        await asyncio.sleep(0.001)


async def answered(house: House, **options: Any) -> int:
    """The version that answered, whose own mask it must be."""
    answer = await ask(house, DATA, **options)
    found = encodings.get("png").decode(answer.body)[0]
    assert (found == truth(PIXELS, THRESHOLDS[answer.mask.version])).all()
    return answer.mask.version


def changes_of(house: House) -> Changes:
    assert isinstance(house.device, LocalDevice)
    return house.device.changes


def info(house: House) -> set[str]:
    lines = house.metrics.render().decode().splitlines()
    return {line for line in lines if line.startswith("ternaus_model_info{")}


class Held:
    """Holds a thread where it is called, until it is let go."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self._go.wait(PATIENCE)

    async def wait_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, PATIENCE)

    def go(self) -> None:
        self._go.set()


@on_a_loop
async def test_old_version_serves_until_the_new_one_takes_over(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        assert await answered(house) == 1
        shelf.opening = held = Held()
        load = asyncio.ensure_future(house.load("fake"))
        await held.wait_reached()
        assert await answered(house) == await answered(house, model="fake") == 1
        assert house.ready
        held.go()
        done = await load
        assert (done.label, done.replaced, done.opened) == ("fake@2", "fake@1", True)
        assert await answered(house) == await answered(house, model="fake") == 2
        with pytest.raises(ModelNotFound):
            house.catalog.get("fake@1")
        await closed(shelf, "fake@1")
        assert not shelf.engine("fake@2").closed
        # At the start nothing else is on the device; beside an engine that serves, turns are taken.
        assert shelf.turns == [False, True]
    assert shelf.engine("fake@2").closed


@on_a_loop
async def test_request_under_way_ends_on_the_version_it_began_with(shelf: Shelf) -> None:
    async with house_of(shelf, tiles_in_flight=1, newer=(2,)) as house:
        large = picture(300, 300)
        held = Held()
        shelf.before = lambda pixels: held() if pixels.shape[1:3] == (128, 128) else None
        request = asyncio.ensure_future(ask(house, encoded(large)))
        await held.wait_reached()
        # The device is held by the old version's tile: the new one's self-test waits its turn.
        load = asyncio.ensure_future(house.load("fake"))
        while not shelf.engines.get("fake@2"):
            await asyncio.sleep(0.001)
        shelf.before = lambda pixels: None
        held.go()
        await load
        assert await answered(house) == 2
        answer = await request
        assert answer.mask.version == 1
        assert (encodings.get("png").decode(answer.body)[0] == truth(large)).all()
        await closed(shelf, "fake@1")


@on_a_loop
async def test_old_engine_is_kept_while_a_request_holds_it(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        old = house.catalog.get("fake")
        with old.loans:
            await house.load("fake")
            assert await answered(house) == 2
            assert not shelf.engine("fake@1").closed
            assert any('version="1"' in line for line in info(house))
        await closed(shelf, "fake@1")


@on_a_loop
async def test_nothing_is_remembered_of_a_closed_engine(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        for _ in range(3):
            assert await answered(house) == 1
        old = house.catalog.get("fake").engine
        lanes = batcher_of(house)._lanes

        def remembered() -> list[Hashable]:
            tables = (house.segmenter._heat, lanes.costs._launches)
            keys: list[Hashable] = [key for table in tables for key in list(table._values)]
            return [key for key in keys if isinstance(key, Lane) and key.engine is old]

        assert len(remembered()) == 2
        await house.load("fake")
        await closed(shelf, "fake@1")
        while len(info(house)) > 1:
            await asyncio.sleep(0.001)
        assert not remembered()
        assert 'version="2"' in info(house).pop()
        assert not house.segmenter._preparing


@on_a_loop
async def test_tile_that_nobody_waits_for_does_not_reach_a_closed_engine(shelf: Shelf) -> None:
    async with house_of(shelf, "fake", host_threads=4, newer=(2,)) as house:
        shelf.publish("other", 1)
        await house.load("other")
        held = Held()
        shelf.before = held
        busy = asyncio.ensure_future(ask(house, DATA, model="other"))
        await held.wait_reached()
        waiting = [asyncio.ensure_future(ask(house, DATA, model="fake")) for _ in range(3)]
        while batcher_of(house).figures()["tiles"] < 3:
            await asyncio.sleep(0.001)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        old = shelf.engine("fake@1")
        batches = len(old.batches)
        shelf.before = lambda pixels: None
        unload = asyncio.ensure_future(house.unload("fake"))
        await asyncio.sleep(0)
        held.go()
        assert await unload == ["fake@1"]
        await busy
        assert old.closed
        assert len(old.batches) == batches
        assert 'ternaus_cancelled_total{stage="queue"} 3.0' in house.metrics.render().decode()
        assert batcher_of(house).figures()["tiles"] == 0
        # Whoever waits is told first; the device is free a moment later.
        while batcher_of(house).state() != "idle":
            await asyncio.sleep(0.001)


@on_a_loop
async def test_version_that_is_open_answers_without_work(shelf: Shelf) -> None:
    async with house_of(shelf) as house:
        for label in ("fake", "fake@1"):
            done = await house.load(label)
            assert (done.label, done.replaced, done.opened) == ("fake@1", None, False)
        assert len(shelf.engines["fake@1"]) == 1


@on_a_loop
async def test_older_version_can_be_had_back(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        await house.load("fake")
        done = await house.load("fake@1")
        assert done.replaced == "fake@2"
        assert await answered(house) == 1
        first, second = shelf.engines["fake@1"]
        assert first.closed  # type: ignore[attr-defined]
        assert not second.closed  # type: ignore[attr-defined]
        assert len(info(house)) in (1, 2)
        await closed(shelf, "fake@2")


def broken_store(spec: ModelSpec) -> None:
    raise StoreError("the disk is gone")


def no_memory(spec: ModelSpec) -> None:
    raise MemoryError


def no_device_memory(spec: ModelSpec) -> None:
    raise EngineError(f"{spec.label} cannot be placed: out of memory")


def defect(spec: ModelSpec) -> None:
    raise KeyError("a defect of ours")


@pytest.mark.parametrize(
    ("opening", "error", "words"),
    [
        (broken_store, StoreError, "the disk is gone"),
        (no_memory, EngineError, "no memory to open fake@2"),
        (no_device_memory, EngineError, "out of memory"),
        (defect, KeyError, "a defect of ours"),
    ],
)
@on_a_loop
async def test_version_that_cannot_be_opened_changes_nothing(
    shelf: Shelf, opening: Any, error: type[Exception], words: str
) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        shelf.opening = opening
        with pytest.raises(error, match=words):
            await house.load("fake")
        assert house.ready
        assert await answered(house) == 1
        assert not shelf.engine("fake@1").closed
        assert words in house.describe()["failures"]["fake@2"]
        assert 'ternaus_model_loads_total{name="fake",result="failed"} 1.0' in (
            house.metrics.render().decode()
        )
        # The next one may succeed, and then nothing is shown any more.
        shelf.opening = lambda spec: None
        await house.load("fake")
        assert not house.describe()["failures"]
        assert await answered(house) == 2


@on_a_loop
async def test_damaged_and_lying_versions_never_take_over(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        shelf.damage("fake@2")
        with pytest.raises(ModelDamaged):
            await house.load("fake")
        spec = shelf.publish("fake", 3)
        Path(spec.sample_mask).write_bytes(Path(shelf.resolve("fake@1").sample_mask).read_bytes())
        with pytest.raises(SelfTestFailed):
            await house.load("fake")
        assert shelf.engine("fake@3").closed
        with pytest.raises(ModelNotFound):
            await house.load("fake@9")
        assert set(house.describe()["failures"]) == {"fake@2", "fake@3", "fake@9"}
        assert await answered(house) == 1
        assert len(info(house)) == 1


@pytest.mark.parametrize("label", ["nobody", "no/body", "fake@0", "fake@x", "@1", ""])
@on_a_loop
async def test_name_that_is_not_there_is_told_and_not_shown(shelf: Shelf, label: str) -> None:
    async with house_of(shelf) as house:
        with pytest.raises(ModelNotFound):
            await house.load(label)
        assert not house.describe()["failures"]
        assert 'name="nobody"' not in house.metrics.render().decode()


@on_a_loop
async def test_failures_that_are_shown_are_bounded(shelf: Shelf) -> None:
    async with house_of(shelf) as house:
        for version in range(2, 50):
            with pytest.raises(ModelNotFound):
                await house.load(f"fake@{version}")
        assert list(house.catalog.failures) == [f"fake@{version}" for version in range(18, 50)]


@on_a_loop
async def test_loads_happen_one_after_the_other(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2, 3)) as house:
        shelf.opening = held = Held()
        both = [asyncio.ensure_future(house.load(f"fake@{v}")) for v in (2, 3)]
        again = asyncio.ensure_future(house.load("fake@3"))
        await held.wait_reached()
        await asyncio.sleep(0.01)
        assert list(shelf.engines) == ["fake@1"]
        held.go()
        second, third = await asyncio.gather(*both)
        assert (second.replaced, third.replaced) == ("fake@1", "fake@2")
        assert not (await again).opened
        assert len(shelf.engines["fake@3"]) == 1


@on_a_loop
async def test_two_versions_stand_in_memory_and_never_three(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2, 3)) as house:
        with house.catalog.get("fake").loans:
            await house.load("fake@2")
            third = asyncio.ensure_future(house.load("fake@3"))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert list(shelf.engines) == ["fake@1", "fake@2"]
            assert await answered(house) == 2
        assert (await third).replaced == "fake@2"
        assert shelf.engine("fake@1").closed


@on_a_loop
async def test_load_goes_on_when_whoever_asked_has_left(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        shelf.opening = held = Held()
        load = asyncio.ensure_future(house.load("fake"))
        await held.wait_reached()
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        held.go()
        await closed(shelf, "fake@1")
        assert await answered(house) == 2


@on_a_loop
async def test_draining_server_changes_nothing(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2, 3)) as house:
        shelf.opening = held = Held()
        load = asyncio.ensure_future(house.load("fake@2"))
        await held.wait_reached()
        house.drain()
        held.go()
        with pytest.raises(Draining):
            await load
        assert shelf.engine("fake@2").closed
        for change in (house.load("fake"), house.unload("fake")):
            with pytest.raises(Draining):
                await change
        assert await answered(house) == 1
        assert not house.catalog.failures


@on_a_loop
async def test_server_that_still_opens_changes_nothing(shelf: Shelf) -> None:
    house = House.local(rules(), resolve=shelf.resolve, open_engine=shelf.open_engine)
    with pytest.raises(NotReady):
        await house.load("fake")
    await house.close()


@on_a_loop
async def test_closing_waits_for_a_load_and_closes_its_engine(shelf: Shelf) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        shelf.opening = held = Held()
        load = asyncio.ensure_future(house.load("fake"))
        await held.wait_reached()
        closing = asyncio.ensure_future(house.close())
        await asyncio.sleep(0)
        held.go()
        await closing
        with pytest.raises(Draining):
            await load
        assert shelf.engine("fake@1").closed
        assert shelf.engine("fake@2").closed


@on_a_loop
async def test_pinned_version_stays_and_the_plain_name_moves(shelf: Shelf) -> None:
    async with house_of(shelf, "fake@1", newer=(2, 3)) as house:
        assert (await house.load("fake@2")).replaced is None
        assert await answered(house, model="fake") == 2
        assert await answered(house, model="fake@1") == 1
        # The settings name version 1 alone, so it is what requests get that name nothing.
        assert await answered(house) == 1
        assert (await house.load("fake")).replaced == "fake@2"
        assert await answered(house, model="fake") == 3
        done = await house.load("fake@1")
        assert (done.replaced, done.opened) == ("fake@3", False)
        assert await answered(house, model="fake") == 1
        await closed(shelf, "fake@3")
        assert list(house.catalog.models) == ["fake@1"]


@on_a_loop
async def test_default_that_names_a_version_is_never_replaced(shelf: Shelf) -> None:
    async with house_of(shelf, default_model="fake@1", newer=(2,)) as house:
        await house.load("fake")
        assert await answered(house) == 1
        assert await answered(house, model="fake") == 2


@on_a_loop
async def test_first_model_stays_the_default_through_changes(shelf: Shelf) -> None:
    shelf.publish("other", 1)
    async with house_of(shelf, newer=(2,)) as house:
        await house.load("fake")
        assert list(house.catalog.models) == ["fake@2", "other@1"]
        assert await answered(house) == 2
        [fake, other] = house.catalog.describe()
        assert (fake["default"], other["default"]) == (True, False)


@on_a_loop
async def test_model_that_was_not_open_is_opened(shelf: Shelf) -> None:
    async with house_of(shelf) as house:
        shelf.publish("other", 2)
        done = await house.load("other")
        assert (done.replaced, done.opened) == (None, True)
        assert await answered(house, model="other") == 2
        assert await answered(house) == 1
        assert len(info(house)) == 2


@on_a_loop
async def test_unloading_closes_and_forgets(shelf: Shelf) -> None:
    shelf.publish("other", 1)
    async with house_of(shelf) as house:
        assert await house.unload("fake") == ["fake@1"]
        assert shelf.engine("fake@1").closed
        assert len(info(house)) == 1
        with pytest.raises(ModelNotFound):
            await answered(house, model="fake")
        assert (await ask(house, DATA)).mask.model == "other"
        with pytest.raises(ModelNeeded, match="nothing would be left"):
            await house.unload("other")
        with pytest.raises(ModelNotFound):
            await house.unload("fake")
        assert (await ask(house, DATA)).mask.model == "other"


@pytest.mark.parametrize(
    ("default", "label", "refused"),
    [
        ("fake", "fake", True),
        ("fake", "fake@2", False),
        ("fake@1", "fake", True),
        ("fake@1", "fake@1", True),
        ("fake@1", "fake@2", False),
        ("other", "fake", False),
        ("", "fake", False),
    ],
)
@on_a_loop
async def test_named_default_is_not_unloaded(
    shelf: Shelf, default: str, label: str, refused: bool
) -> None:
    shelf.publish("fake", 2)
    shelf.publish("other", 1)
    async with house_of(shelf, "fake@1", "fake", "other", default_model=default) as house:
        before = (await ask(house, DATA)).mask
        if refused:
            with pytest.raises(ModelNeeded, match="TERNAUS_DEFAULT_MODEL"):
                await house.unload(label)
        else:
            await house.unload(label)
        after = (await ask(house, DATA)).mask
        if default:
            assert after.model == before.model
        if label == "fake@2":
            assert await answered(house, model="fake") == 1


@on_a_loop
async def test_canary_of_a_model_that_leaves_is_no_failure(shelf: Shelf) -> None:
    async with house_of(shelf, canary_s=0.01, newer=(2,)) as house:
        held = Held()
        shelf.before = held
        await held.wait_reached()  # in the canary's own picture
        shelf.before = lambda pixels: None
        load = asyncio.ensure_future(house.load("fake"))
        await asyncio.sleep(0)
        held.go()
        await load
        await closed(shelf, "fake@1")
        tried = len(shelf.engine("fake@2").batches)
        while len(shelf.engine("fake@2").batches) < tried + 3:
            await asyncio.sleep(0.005)
            assert house.ready, house.describe()


@on_a_loop
async def test_canary_passes_over_a_model_that_left_meanwhile(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.publish("other", 1)
    async with house_of(shelf, canary_s=0.01) as house:
        held = Held()
        shelf.engine("fake@1").before = held
        await held.wait_reached()  # the canary is about to try the other one next
        unload = asyncio.ensure_future(house.unload("other"))
        while "other@1" in house.catalog.models:
            await asyncio.sleep(0.001)
        held.go()
        await unload
        tried = len(shelf.engine("fake@1").batches)
        while len(shelf.engine("fake@1").batches) < tried + 3:
            await asyncio.sleep(0.005)
        assert not [r for r in caplog.records if r.levelname == "CRITICAL"]


@on_a_loop
async def test_load_cures_a_model_whose_canary_failed(shelf: Shelf) -> None:
    async with house_of(shelf, canary_s=0.01, newer=(2,)) as house:

        def fail(pixels: Pixels) -> None:
            raise InferenceFailed("no more")

        shelf.engine("fake@1").before = fail
        while house.ready:
            await asyncio.sleep(0.005)
        assert house.state == "failing"
        await house.load("fake")
        assert house.ready
        assert "canary" not in house.describe()["failures"]


@on_a_loop
async def test_store_is_followed(shelf: Shelf) -> None:
    shelf.publish("pinned", 1)
    async with house_of(shelf, "fake", "pinned@1") as house:
        await changes_of(house).look()
        assert len(shelf.engines) == 2
        shelf.publish("fake", 2)
        shelf.publish("pinned", 2)
        await changes_of(house).look()
        assert list(house.catalog.models) == ["fake@2", "pinned@1"]


@on_a_loop
async def test_bad_version_is_tried_once_until_something_newer_or_mended_appears(
    shelf: Shelf,
) -> None:
    async with house_of(shelf) as house:
        tried: list[str] = []
        shelf.opening = lambda spec: tried.append(spec.label)
        shelf.publish("fake", 2, mark="torn")

        def refuse(spec: ModelSpec) -> None:
            tried.append(spec.label)
            raise ModelDamaged(f"{spec.label} is torn")

        shelf.opening = refuse
        for _ in range(3):
            await changes_of(house).look()
        assert tried == ["fake@2"]
        assert house.describe()["failures"] == {"fake@2": "fake@2 is torn"}
        assert house.ready
        shelf.publish("fake", 2, mark="mended")
        shelf.opening = lambda spec: tried.append(spec.label)
        await changes_of(house).look()
        assert tried == ["fake@2", "fake@2"]
        assert await answered(house) == 2
        assert not house.describe()["failures"]


@on_a_loop
async def test_version_that_somebody_put_back_is_left_until_something_newer_appears(
    shelf: Shelf,
) -> None:
    async with house_of(shelf, newer=(2,)) as house:
        await changes_of(house).look()
        assert await answered(house) == 2
        await house.load("fake@1")
        await changes_of(house).look()
        assert await answered(house) == 1
        shelf.publish("fake", 3)
        await changes_of(house).look()
        assert await answered(house) == 3


@on_a_loop
async def test_store_that_cannot_be_reached_is_shown_and_harms_nothing(shelf: Shelf) -> None:
    async with house_of(shelf) as house:
        looked = shelf.newest

        def gone(name: str) -> Any:
            raise StoreError("the bucket is not reachable")

        changes_of(house)._newest = gone
        await changes_of(house).look()
        assert house.describe()["failures"] == {"fake": "the bucket is not reachable"}
        assert house.ready
        changes_of(house)._newest = looked
        await changes_of(house).look()
        assert not house.describe()["failures"]


@on_a_loop
async def test_watch_looks_again_and_again(shelf: Shelf) -> None:
    async with house_of(shelf, watch_store_s=0.005, newer=(2,)) as house:
        await closed(shelf, "fake@1")
        shelf.publish("fake", 3)
        while "fake@3" not in house.catalog.models:
            await asyncio.sleep(0.001)
    looks = shelf.looks
    await asyncio.sleep(0.02)
    assert shelf.looks == looks, "a closed house still looks"


async def successor_of(house: House, shelf: Shelf) -> House:
    """Another house, that goes on where this one is; what it is told travels as JSON."""
    told = json.dumps(dataclasses.asdict(changes_of(house).served()))
    found = House.local(
        rules(), resolve=shelf.resolve, open_engine=shelf.open_engine, newest=shelf.newest
    )
    assert isinstance(found.device, LocalDevice)
    await found.device.reopen(Served(**json.loads(told)))
    return found


@on_a_loop
async def test_successor_serves_what_was_served_last(shelf: Shelf) -> None:
    shelf.publish("other", 1)
    shelf.publish("gone", 1)
    labels = ("fake@1", "fake", "other", "gone")
    async with house_of(shelf, *labels, newer=(2, 3)) as house:
        await house.load("fake@3")
        await house.load("fake@2")  # put back by hand
        await house.unload("gone")
        shelf.publish("other", 2)
        shelf.damage("other@2")
        await changes_of(house).look()
        after = await successor_of(house, shelf)
        assert after.catalog.describe() == house.catalog.describe()
        assert after.describe()["failures"] == house.describe()["failures"]
        assert [m.spec.label for m in after.catalog.followed.values()] == ["fake@2", "other@1"]
        assert await answered(after, model="fake") == 2
        assert await answered(after) == 1
        assert len(info(after)) == 3
        # What was decided stands: neither the newer nor the bad version is loaded by itself.
        tried: list[str] = []
        shelf.opening = lambda spec: tried.append(spec.label)
        await changes_of(after).look()
        assert not tried
        shelf.publish("fake", 4)
        await changes_of(after).look()
        assert tried == ["fake@4"]
        # The pinned version stays, the one that was put back leaves.
        assert [label for label in after.catalog.models if "fake" in label] == ["fake@1", "fake@4"]
        await after.close()


@on_a_loop
async def test_version_whose_opening_ended_the_process_is_not_tried_again_by_itself(
    shelf: Shelf,
) -> None:
    async with house_of(shelf) as house:
        shelf.publish("fake", 2, mark="deadly")
        shelf.opening = held = Held()
        load = asyncio.ensure_future(house.load("fake"))
        await held.wait_reached()
        # What another process would know if this one ended now.
        shelf.opening = lambda spec: None
        after = await successor_of(house, shelf)
        assert list(after.catalog.models) == ["fake@1"]
        assert "ended while it was opened" in after.describe()["failures"]["fake@2"]
        assert 'ternaus_model_loads_total{name="fake",result="failed"} 1.0' in (
            after.metrics.render().decode()
        )
        await changes_of(after).look()
        assert await answered(after) == 1
        # Until it is mended, or somebody says so.
        shelf.publish("fake", 2, mark="mended")
        await changes_of(after).look()
        assert await answered(after) == 2
        assert not after.describe()["failures"]
        await after.close()
        held.go()
        await load
        assert not changes_of(house).served().bad
