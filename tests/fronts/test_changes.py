"""Models are changed for every front end, whoever was asked, and whatever ends meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fronts.test_journeys import counted, mask_of
from tests.fronts.together import ADMIN, KEY, PATIENCE, Together, together, until
from tests.server import THRESHOLDS, encoded, picture, truth
from tests.shelf import PublicShelf

pytestmark = pytest.mark.journey

PIXELS = picture(64, 64)
DATA = encoded(PIXELS)


@contextlib.contextmanager
def changeable(folder: Path, *labels: str, **settings: Any) -> Iterator[Together]:
    """Two front ends; `fake@1` and `labels` are open."""
    shelf = PublicShelf(folder / "store")
    for label in ("fake@1", *labels):
        name, _, version = label.partition("@")
        shelf.publish(name, int(version))
    with together(folder, canary_s=0, admin_key=KEY, **settings) as process:
        yield process


def version_of(answer: httpx.Response) -> int:
    """The version that answered, whose own mask it must be."""
    mask = mask_of(answer)
    version = int(answer.headers["x-model"].rpartition("@")[2])
    assert (mask == truth(PIXELS, THRESHOLDS[version])).all()
    return version


def versions(process: Together) -> list[int]:
    """The version that each front end answers with."""
    return process.everywhere(lambda c: version_of(c.post("/segment", content=DATA)))


class Stream:
    """One picture after the other to one front end, and the versions that answered."""

    def __init__(self, process: Together, name: str) -> None:
        self.versions: list[int] = []
        self.wrong: list[BaseException] = []
        self._process, self._name = process, name
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._process.at(self._name) as client:
                while not self._ending.is_set():
                    self.versions.append(version_of(client.post("/segment", content=DATA)))
        except BaseException as exc:
            self.wrong.append(exc)

    def flow(self, count: int) -> None:
        """Until so many more answers have come."""
        goal = len(self.versions) + count
        until(lambda: self.wrong or len(self.versions) >= goal)
        assert not self.wrong

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE)


def test_new_version_answers_at_every_front_end_and_nothing_is_lost(tmp_path: Path) -> None:
    with changeable(tmp_path) as process:
        names = ("front-0", "front-0", "front-1", "front-1")
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(Stream(process, name)) for name in names]
            for stream in streams:
                stream.flow(5)
            process.shelf.publish("fake", 2)
            for asked, version in (("front-0", 2), ("front-1", 1), ("front-0", 2)):
                with process.at(asked) as client:
                    path = f"/models/fake/load?version={version}"
                    answer = client.post(path, headers=ADMIN)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["replaced"] == f"fake@{3 - version}"
                    assert answer.json()["model"] == client.get("/models/fake").json()
                # Whatever begins after the answer is the new version's, wherever it comes in.
                assert versions(process) == [version] * 2
                assert process.open_everywhere() == [[f"fake@{version}"]] * 2
                for stream in streams:
                    stream.flow(5)
        for stream in streams:
            assert not stream.wrong
            # Each front end turned three times, at once and never back by itself.
            assert [version for version, _ in itertools.groupby(stream.versions)] == [1, 2, 1, 2]
        until(lambda: process.get("/metrics").text.count("ternaus_model_info{") == 1)
        assert 'version="2"' in process.get("/metrics").text
        assert counted(process, "ternaus_model_loads_total") == 3
        process.terminate()
        assert process.wait_exit() == 0, process.text
        assert "Traceback" not in process.text


def test_bad_version_is_refused_and_the_old_one_serves(tmp_path: Path) -> None:
    with changeable(tmp_path) as process:
        process.shelf.publish("fake", 2)
        process.shelf.damage("fake@2")
        answer = process.change("fake/load")
        assert (answer.status_code, answer.json()["code"]) == (500, "model_damaged")
        for health in process.everywhere(lambda c: c.get("/health").json()):
            assert health["ready"]
            assert health["failures"] == {"fake@2": answer.json()["detail"]}
        assert versions(process) == [1, 1]
        # Nor is anything changed by who has no key, or asks for what there is not.
        assert process.everywhere(lambda c: c.post("/models/fake/load").status_code) == [401] * 2
        assert process.change("nobody/load").status_code == 404
        process.shelf.publish("fake", 2)
        assert process.change("fake/load").status_code == 200
        assert versions(process) == [2, 2]
        assert process.everywhere(lambda c: c.get("/health").json()["failures"]) == [{}, {}]


def test_unloaded_model_is_gone_at_every_front_end(tmp_path: Path) -> None:
    with changeable(tmp_path, "other@1") as process:
        assert process.open_everywhere() == [["fake@1", "other@1"]] * 2
        answer = process.change("other/unload")
        assert answer.json() == {"unloaded": ["other@1"]}
        until(lambda: "other@1 is closed" in process.text)
        path = "/segment?model=other"
        found = process.everywhere(lambda c: c.post(path, content=DATA).json()["code"])
        assert found == ["model_not_found"] * 2
        assert process.everywhere(lambda c: c.get("/models/other").status_code) == [404] * 2
        answer = process.change("fake/unload")
        assert (answer.status_code, answer.json()["code"]) == (409, "model_needed")
        assert versions(process) == [1, 1]


def test_engine_that_dies_comes_back_with_what_was_served_last(tmp_path: Path) -> None:
    with changeable(tmp_path, "other@1") as process:
        for version in (2, 3):
            process.shelf.publish("fake", version)
        assert process.change("fake/load").status_code == 200
        assert process.change("other/unload").status_code == 200
        # Neither what the settings say nor the newest: what somebody put back.
        assert process.change("fake/load?version=2").status_code == 200
        dead = process.kill("engine")
        until(lambda: process.children()["engine"] != dead)
        until(process.all_ready)
        assert process.open_everywhere() == [["fake@2"]] * 2
        assert versions(process) == [2, 2]
        assert process.change("fake/load").json()["replaced"] == "fake@2"
        assert versions(process) == [3, 3]


def test_engine_that_dies_during_a_change_fails_it_and_serves_what_it_served(
    tmp_path: Path,
) -> None:
    with changeable(tmp_path) as process, ThreadPoolExecutor(1) as pool:
        process.shelf.publish("fake", 2)
        process.order("hold")
        process.recall("opening")
        load = pool.submit(process.change, "fake/load")
        process.told("opening")
        dead = process.kill("engine")
        process.recall("hold")
        answer = load.result(PATIENCE)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        until(lambda: process.children()["engine"] != dead)
        until(process.all_ready)
        assert versions(process) == [1, 1]
        for failures in process.everywhere(lambda c: c.get("/health").json()["failures"]):
            assert "ended while it was opened" in failures["fake@2"]
        assert process.change("fake/load").status_code == 200
        assert versions(process) == [2, 2]


def test_store_is_watched_and_a_deadly_version_is_tried_once(tmp_path: Path) -> None:
    with changeable(tmp_path, watch_store_s=0.05) as process:
        first = process.children()["engine"]
        process.order("kill-fake@2")
        process.shelf.publish("fake", 2)
        until(lambda: process.children()["engine"] != first)
        until(process.all_ready)
        second = process.children()["engine"]
        for _ in range(3):
            process.recall("looked")
            process.told("looked")
        assert versions(process) == [1, 1]
        process.shelf.publish("fake", 3)
        until(lambda: process.open_everywhere() == [["fake@3"]] * 2)
        assert versions(process) == [3, 3]
        assert process.children()["engine"] == second
        # Once for all front ends.
        text = process.get("/metrics").text
        assert 'ternaus_model_loads_total{name="fake",result="loaded"} 1.0' in text
        assert 'ternaus_model_loads_total{name="fake",result="failed"} 1.0' in text


def test_front_end_that_dies_during_a_change_costs_nothing_else(tmp_path: Path) -> None:
    with changeable(tmp_path) as process, ThreadPoolExecutor(1) as pool:
        process.shelf.publish("fake", 2)
        process.order("hold")
        process.recall("opening")
        with process.at("front-0") as client, Stream(process, "front-1") as stream:
            load = pool.submit(client.post, "/models/fake/load", headers=ADMIN)
            process.told("opening")
            dead = process.kill("front-0")
            with pytest.raises(httpx.TransportError):
                load.result(PATIENCE)
            stream.flow(3)
            process.recall("hold")
            until(lambda: stream.wrong or 2 in stream.versions)
        assert not stream.wrong
        until(lambda: process.children()["front-0"] != dead)
        until(process.all_ready)
        assert versions(process) == [2, 2]
        # Nothing of the dead one keeps the old version open.
        until(lambda: process.get("/metrics").text.count("ternaus_model_info{") == 1)
