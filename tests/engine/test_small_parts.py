"""Faults, findings, the bounded table, the quota: parts that need no engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from app.engine.cores import quota_cores
from app.engine.fair_lock import FairLock
from app.engine.faults import verdict
from app.engine.findings import key_of, recall, remember
from app.engine.recent import Recent
from app.errors import DeviceOutOfMemory, EngineError, EngineLost, InferenceFailed

DOING = "infer of 4 x 256 x 256"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_no_memory_is_told_from_all_else(error: Exception) -> None:
    def untouched() -> bool:
        raise AssertionError("a device out of memory is alive")

    found = verdict(error, alive=untouched, doing=DOING)
    assert isinstance(found, DeviceOutOfMemory)
    assert DOING in found.detail


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA",
        "CUDA error: unspecified launch failure",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_device_that_no_longer_answers_is_lost(words: str) -> None:
    found = verdict(RuntimeError(words), alive=lambda: False, doing=DOING)
    assert isinstance(found, EngineLost)
    assert "\n" not in found.detail


def test_memory_that_a_capture_lacked_is_told_by_what_came_first() -> None:
    def capture() -> None:
        try:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    with pytest.raises(RuntimeError) as caught:
        capture()
    found = verdict(caught.value, alive=lambda: True, doing=DOING)
    assert isinstance(found, DeviceOutOfMemory)


def test_convolution_without_a_way_lacks_memory_or_the_device() -> None:
    error = RuntimeError("GET was unable to find an engine to execute this computation")
    found = verdict(error, alive=lambda: True, doing=DOING)
    assert isinstance(found, DeviceOutOfMemory)
    assert "or no way to compute it" in found.detail
    assert isinstance(verdict(error, alive=lambda: False, doing=DOING), EngineLost)


def test_fair_lock_is_given_in_the_order_of_asking() -> None:
    lock, order = FairLock(), []
    inside, other = threading.Event(), threading.Event()

    def greedy() -> None:
        for turn in range(3):
            with lock:
                inside.set()
                other.wait(30)
                order.append(f"greedy {turn}")

    def patient() -> None:
        with lock:
            order.append("patient")

    threads = [threading.Thread(target=greedy), threading.Thread(target=patient)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    while lock._last < 2:
        time.sleep(0.001)
    other.set()
    for thread in threads:
        thread.join(30)
    assert order == ["greedy 0", "patient", "greedy 1", "greedy 2"]
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass


def test_a_device_that_answers_has_failed_this_batch_alone() -> None:
    error = RuntimeError("CUDA error: invalid configuration argument")
    found = verdict(error, alive=lambda: True, doing=DOING)
    assert type(found) is InferenceFailed


def test_an_error_that_is_not_the_device_does_not_touch_it() -> None:
    def untouched() -> bool:
        raise AssertionError("not asked")

    found = verdict(RuntimeError("sizes do not match"), alive=untouched, doing=DOING)
    assert type(found) is InferenceFailed
    assert "sizes do not match" in found.detail
    assert type(verdict(RuntimeError(), alive=untouched, doing=DOING)) is InferenceFailed


def test_what_was_found_is_recalled_and_damage_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "findings.json"
    assert recall(file) is None
    remember(file, {"precision": "float32"})
    assert recall(file) == {"precision": "float32"}
    assert [path.name for path in file.parent.iterdir()] == ["findings.json"]
    for damage in (b"{", b"[1]", b"\xff\xfe"):
        file.write_bytes(damage)
        assert recall(file) is None


def test_a_folder_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match="cache_dir"):
        remember(tmp_path / "file" / "findings.json", {})


def test_keys_follow_the_facts() -> None:
    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": (2, 3), "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_the_least_recently_used_leaves() -> None:
    table: Recent[str, int] = Recent(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert table.keys() == ["a", "c"]
    assert table.get("b") is None
    assert "a" in table
    assert len(table) == 2
    table.clear()
    assert len(table) == 0
    with pytest.raises(ValueError, match="holds nothing"):
        Recent(0)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("50000 100000", 1), ("1000 100000", 1), ("max 100000", None), ("99900000 100000", None)],
)
def test_a_quota_binds_only_below_the_cores_seen(
    tmp_path: Path, text: str, cores: int | None
) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text + "\n")
    found = quota_cores(limit)
    # A machine of one core is never bound.
    assert found == cores or (cores == 1 and found is None)
    assert quota_cores(tmp_path / "absent") is None
