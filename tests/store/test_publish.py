"""A version appears whole or not at all, once, and never changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import app
from app.errors import ManifestInvalid, ModelDamaged, StoreError, VersionExists
from app.store import ModelStore
from app.store.names import claim_mark, incoming_mark
from tests.store.makers import (
    DAY,
    NOW,
    BucketFileSystem,
    DyingDisk,
    Fuse,
    Killed,
    draft,
    files,
    tensors,
)

# Runs in a process of its own: publish as often as asked, print the versions that came of it.
PUBLISH = """
import sys
from app.errors import VersionExists
from app.store import ModelStore
from tests.store.makers import draft, files
root, times, version = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
store = ModelStore(root)
for _ in range(times):
    try:
        print(store.publish("lungs", draft(), files(), version))
    except VersionExists:
        print("exists")
"""


def bucket_store(tmp_path: Path, **rest: Any) -> ModelStore:
    return ModelStore(
        "bucket://models", tmp_path / "cache", now=lambda: NOW, pause=lambda s: None, **rest
    )


def test_versions_count_up(store: ModelStore) -> None:
    assert [store.publish("lungs", draft(), files()) for _ in range(3)] == [1, 2, 3]
    assert store.publish("lungs", draft(), files(), version=7) == 7
    assert store.publish("lungs", draft(), files()) == 8
    assert store.versions("lungs") == [1, 2, 3, 7, 8]
    assert store.problems() == []


def test_published_version_never_changes(store: ModelStore) -> None:
    store.publish("lungs", draft(), files())
    before = store.manifest("lungs")
    with pytest.raises(VersionExists, match=r"`lungs@1` is published, and .* never changes"):
        store.publish("lungs", draft(threshold=0.3), files(), version=1)
    assert store.manifest("lungs") == before
    assert store.verify("lungs@1").sound


def test_files_may_be_paths(store: ModelStore, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_bytes(b"# Lungs\n" * 3)
    weights = tmp_path / "best.bin"
    source = files()["weights.safetensors"]
    assert isinstance(source, bytes)
    weights.write_bytes(source)
    store.publish("lungs", draft(), files() | {"README.md": card, "weights.safetensors": weights})
    assert store.fetch("lungs")["README.md"].read_bytes() == card.read_bytes()
    assert Path(store.resolve("lungs").weights).read_bytes() == source


def test_files_on_a_disk_are_read_only(tmp_path: Path) -> None:
    ModelStore(tmp_path).publish("lungs", draft(), files())
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "lungs" / "1").iterdir()}
    assert modes == {0o444}


def test_extra_files_are_kept_and_listed(store: ModelStore) -> None:
    store.publish("lungs", draft(), files() | {"curve.json": b"[1]"})
    assert store.manifest("lungs").files["curve.json"].size == 3
    assert store.fetch("lungs")["curve.json"].read_bytes() == b"[1]"


@pytest.mark.parametrize(
    ("name", "changes", "version", "error", "told"),
    [
        ("Lungs", {}, None, ManifestInvalid, "`name`: expected at most 64 of the characters"),
        ("../lungs", {}, None, ManifestInvalid, "`name`: expected"),
        ("lungs", {}, 0, ManifestInvalid, "`version`: expected a whole number from 1"),
        ("lungs", {}, True, ManifestInvalid, "`version`: expected a whole number from 1"),
        ("lungs", {"a/b": b"1"}, None, ManifestInvalid, "`files`: expected a plain file name"),
        ("lungs", {"manifest.json": b"{}"}, None, ManifestInvalid, "no `manifest.json`"),
        ("lungs", {"README.md": None}, None, ManifestInvalid, "`files`: expected `README.md`"),
        ("lungs", {"sample.jpg": None}, None, ManifestInvalid, "`files`: expected `sample.jpg`"),
        ("lungs", {"README.md": b""}, None, ManifestInvalid, "`files.README.md.size`: expected"),
        ("lungs", {"README.md": Path("no/card.md")}, None, StoreError, "`README.md` was to be"),
        ("lungs", {"weights.safetensors": b"PK\3\4"}, None, ModelDamaged, "is not safetensors"),
    ],
)
def test_what_cannot_be_published_leaves_no_trace(
    store: ModelStore,
    name: str,
    changes: dict[str, Any],
    version: Any,
    error: type[Exception],
    told: str,
) -> None:
    given = {k: v for k, v in (files() | changes).items() if v is not None}
    with pytest.raises(error) as caught:
        store.publish(name, draft(), given, version)
    assert told in str(caught.value)
    assert store.names() == []
    # An empty folder of the model's may stay on a disk, and is told.
    assert all("holds no version" in str(problem) for problem in store.problems())


def test_weights_that_are_not_finite_are_not_published(store: ModelStore) -> None:
    arrays = tensors()
    arrays["final.weight"][0, 0] = np.nan
    with pytest.raises(ModelDamaged, match=r"NaN or infinity in tensor `final.weight`"):
        store.publish("lungs", draft(), files(arrays))
    assert store.names() == []


# Killed in the middle.


def steps_of_a_publish(root: Path) -> int:
    fuse = Fuse(10**6)
    ModelStore(root, disk=DyingDisk(fuse)).publish("lungs", draft(), files())
    assert "rename" in fuse.taken
    return len(fuse.taken)


def test_kill_at_any_step_on_a_disk_shows_the_old_versions_or_one_whole_new(
    tmp_path: Path,
) -> None:
    outcomes = set()
    for steps in range(steps_of_a_publish(tmp_path / "dry")):
        root = tmp_path / str(steps)
        ModelStore(root, now=lambda: NOW).publish("lungs", draft(), files())
        dying = ModelStore(root, now=lambda: NOW, disk=DyingDisk(Fuse(steps)))
        with pytest.raises(Killed):
            dying.publish("lungs", draft(threshold=0.3), files())

        after = ModelStore(root, now=lambda: NOW)
        versions = after.versions("lungs")
        outcomes.add(len(versions))
        assert versions in ([1], [1, 2])
        assert all(after.verify(f"lungs@{version}").sound for version in versions)
        assert after.publish("lungs", draft(), files()) == versions[-1] + 1
        assert after.sweep() == []  # too young: it may still be at work

        later = ModelStore(root, now=lambda: NOW + DAY + 1)
        later.sweep()
        assert later.problems() == []
    assert outcomes == {1, 2}


def test_kill_at_any_step_in_a_bucket_shows_the_old_versions_or_one_whole_new(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    bucket.fuse = Fuse(10**6)
    bucket_store(tmp_path).publish("dry", draft(), files())
    total = len(bucket.fuse.taken)
    assert total >= 7  # claim, four files, manifest, claim taken back

    outcomes = set()
    for steps in range(total):
        name = f"lungs{steps}"
        bucket.fuse = None
        bucket_store(tmp_path).publish(name, draft(), files())
        bucket.fuse = Fuse(steps)
        with pytest.raises(Killed):
            bucket_store(tmp_path).publish(name, draft(threshold=0.3), files())
        bucket.fuse = None

        after = bucket_store(tmp_path)
        versions = after.versions(name)
        outcomes.add(len(versions))
        assert versions in ([1], [1, 2])
        assert all(after.verify(f"{name}@{version}").sound for version in versions)
        # A number that was begun is not used again while its publisher may live.
        number = after.publish(name, draft(), files())
        assert number in (versions[-1] + 1, versions[-1] + 2)
        assert after.sweep() == []

        later = ModelStore("bucket://models", tmp_path / "cache", now=lambda: NOW + DAY + 1)
        later.sweep()
        assert later.problems() == []
        assert later.versions(name) == [*versions, number]
    assert outcomes == {1, 2}


def test_explicit_version_that_was_begun_and_killed_is_taken_until_swept(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    bucket.fuse = Fuse(3)
    with pytest.raises(Killed):
        bucket_store(tmp_path).publish("lungs", draft(), files(), version=4)
    bucket.fuse = None
    store = bucket_store(tmp_path)
    with pytest.raises(VersionExists, match=r"`bucket://models/lungs/4` is taken by a publish"):
        store.publish("lungs", draft(), files(), version=4)
    assert "no version: it has no `manifest.json`" in " ".join(str(p) for p in store.problems())
    later = ModelStore("bucket://models", tmp_path / "cache", now=lambda: NOW + DAY + 1)
    assert later.publish("lungs", draft(), files(), version=4) == 4


def test_fault_that_is_no_kill_tidies_up_after_itself(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Full(DyingDisk):
        def synchronise(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    store = ModelStore(tmp_path / "m", disk=Full(Fuse(10**6)))
    with pytest.raises(StoreError, match=r"cannot publish `lungs` in .* No space left"):
        store.publish("lungs", draft(), files())
    assert list((tmp_path / "m" / "lungs").iterdir()) == []

    def deny(path: str) -> None:
        raise PermissionError(13, "Denied", path)

    bucket.before_create = deny
    with pytest.raises(StoreError, match=r"cannot use `bucket://models/lungs/1/manifest.json`"):
        bucket_store(tmp_path).publish("lungs", draft(), files())
    # The manifest's write may have succeeded for all we know, so here nothing is taken back.
    assert bucket_store(tmp_path).names() == []


# Two at once.


def test_processes_that_race_on_a_disk_get_versions_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISH, str(tmp_path / "models")]
    place = Path(app.__file__).parents[1]
    racers = [
        subprocess.Popen([*command, "5", "0"], cwd=place, stdout=subprocess.PIPE) for _ in range(2)
    ]
    told = [racer.communicate(timeout=60)[0].decode().split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(int(version) for one in told for version in one) == list(range(1, 11))
    store = ModelStore(tmp_path / "models")
    assert store.versions("lungs") == list(range(1, 11))
    assert store.problems() == []


def test_second_of_two_on_a_disk_meets_the_rename(tmp_path: Path) -> None:
    class Late(DyingDisk):
        """Somebody else publishes the same number just before our rename, twice."""

        others = 2

        def rename(self, old: Path, new: Path) -> None:
            if self.others:
                self.others -= 1
                ModelStore(tmp_path).publish("lungs", draft(description="other"), files())
            super().rename(old, new)

    late = ModelStore(tmp_path, disk=Late(Fuse(10**6)))
    assert late.publish("lungs", draft(description="mine"), files()) == 3
    assert late.manifest("lungs@3").description == "mine"
    assert late.manifest("lungs@2").description == "other"
    assert late.problems() == []
    with pytest.raises(VersionExists, match="`lungs@9` is published"):
        ModelStore(tmp_path, disk=_Overtaken(tmp_path, 9)).publish(
            "lungs", draft(), files(), version=9
        )
    assert late.manifest("lungs@9").description == "other"


class _Overtaken(DyingDisk):
    """Somebody else publishes that very number just before our rename."""

    def __init__(self, root: Path, version: int) -> None:
        super().__init__(Fuse(10**6))
        self._root = root
        self._version = version

    def rename(self, old: Path, new: Path) -> None:
        other = ModelStore(self._root)
        other.publish("lungs", draft(description="other"), files(), version=self._version)
        super().rename(old, new)


@pytest.mark.parametrize("version", [None, 5])
def test_threads_that_race_in_a_bucket_never_share_a_version(
    tmp_path: Path, bucket: type[BucketFileSystem], version: int | None
) -> None:
    told: list[int | str] = []
    start = threading.Barrier(4)

    def race(number: int) -> None:
        store = ModelStore("bucket://models", tmp_path / "cache")
        start.wait(10)
        try:
            mine = draft(description=str(number))
            told.append(store.publish("lungs", mine, files(), version))
        except VersionExists:
            told.append("exists")

    racers = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
    store = bucket_store(tmp_path)
    won = [one for one in told if isinstance(one, int)]
    assert len(told) == 4
    assert len(set(won)) == len(won) == (1 if version else 4)
    assert store.versions("lungs") == sorted(won)
    assert all(store.verify(f"lungs@{one}").sound for one in won)
    assert store.problems() == []


def test_claim_that_meets_another_withdraws_and_comes_again(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    other = f"/models/lungs/1/{claim_mark(NOW)}"
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        bucket.store.pop(other, None)

    class Contested(bucket):  # type: ignore[misc, valid-type]
        def pipe_file(self, path: str, value: bytes, **rest: Any) -> None:
            super().pipe_file(path, value, **rest)
            if "/1/.claim-" in path and not pauses:
                super().pipe_file(other, b"")

    fsspec.register_implementation("bucket", Contested, clobber=True)
    store = ModelStore("bucket://models", tmp_path / "cache", now=lambda: NOW, pause=pause)
    assert store.publish("lungs", draft(), files()) == 1
    assert len(pauses) == 1


def test_claim_gives_up_when_it_is_never_alone(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Crowded(bucket):  # type: ignore[misc, valid-type]
        def pipe_file(self, path: str, value: bytes, **rest: Any) -> None:
            super().pipe_file(path, value, **rest)
            super().pipe_file(path.rsplit("/", 1)[0] + "/" + claim_mark(NOW), b"")

    fsspec.register_implementation("bucket", Crowded, clobber=True)
    with pytest.raises(StoreError, match="is being published to by too many"):
        bucket_store(tmp_path).publish("lungs", draft(), files())


def test_manifest_that_came_first_wins_where_the_claim_did_not_help(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    def other(path: str) -> None:
        bucket.store[path] = type(bucket.store[path.replace("manifest.json", "README.md")])(
            None, path, b"{}"
        )

    bucket.before_create = other
    with pytest.raises(VersionExists, match="`lungs@1` is published"):
        bucket_store(tmp_path).publish("lungs", draft(), files())


def test_write_that_meets_itself_is_a_success(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Twice(bucket):  # type: ignore[misc, valid-type]
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **rest: Any) -> None:
            if mode == "create":
                super().pipe_file(path, value)
            super().pipe_file(path, value, mode=mode)

    fsspec.register_implementation("bucket", Twice, clobber=True)
    assert bucket_store(tmp_path).publish("lungs", draft(), files()) == 1


@pytest.mark.parametrize(
    "refusal", [NotImplementedError(), TypeError("mode"), OSError(38, "not implemented")]
)
def test_backend_without_exclusive_writes_is_written_plainly(
    tmp_path: Path, bucket: type[BucketFileSystem], refusal: Exception
) -> None:
    def refuse(path: str) -> None:
        raise refusal

    bucket.before_create = refuse
    assert bucket_store(tmp_path).publish("lungs", draft(), files()) == 1
    assert bucket_store(tmp_path).verify("lungs@1").sound


def test_upload_that_arrives_changed_is_not_published(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Lossy(bucket):  # type: ignore[misc, valid-type]
        def pipe_file(self, path: str, value: bytes, **rest: Any) -> None:
            super().pipe_file(path, value[:-1] if path.endswith(".md") else value, **rest)

    fsspec.register_implementation("bucket", Lossy, clobber=True)
    with pytest.raises(ModelDamaged, match=r"README.md` is truncated: expected 10 bytes, found 9"):
        bucket_store(tmp_path).publish("lungs", draft(), files())
    assert bucket.store == {}


def test_claim_that_was_swept_stops_the_publish(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Swept(bucket):  # type: ignore[misc, valid-type]
        def pipe_file(self, path: str, value: bytes, **rest: Any) -> None:
            super().pipe_file(path, value, **rest)
            if path.endswith(".md"):
                for name in [name for name in self.store if ".claim-" in name]:
                    del self.store[name]

    fsspec.register_implementation("bucket", Swept, clobber=True)
    with pytest.raises(StoreError, match=r"the claim on .* is gone; publish again"):
        bucket_store(tmp_path).publish("lungs", draft(), files())
    assert bucket.store == {}


# Sweeping.


def test_sweep_takes_what_is_old_and_ours_only(tmp_path: Path) -> None:
    shelf = tmp_path / "lungs"
    old, young = shelf / incoming_mark(NOW - DAY - 1), shelf / incoming_mark(NOW - DAY + 1)
    foreign = shelf / ".git"
    for folder in (old, young, foreign):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"half")
    store = ModelStore(tmp_path, now=lambda: NOW)
    assert store.names() == []
    assert store.sweep() == [str(old)]
    assert young.exists()
    assert foreign.exists()


def test_sweep_leaves_a_published_version_whole(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    store = bucket_store(tmp_path)
    store.publish("lungs", draft(), files())
    claim = f"/models/lungs/1/{claim_mark(NOW - 2 * DAY)}"
    store._root.write(b"", "lungs", "1", claim.rsplit("/", 1)[-1])  # type: ignore[union-attr]
    assert len(store.problems()) == 1
    assert store.sweep() == [f"bucket:/{claim}"]
    assert store.verify("lungs@1").sound
    assert store.problems() == []


def test_sweep_leaves_a_folder_where_a_younger_claim_is_at_work(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    store = bucket_store(tmp_path)
    for age in (2 * DAY, 1.0):
        store._root.write(b"", "lungs", "1", claim_mark(NOW - age))  # type: ignore[union-attr]
    assert store.sweep() == []


def test_manifest_of_a_disk_is_readable_by_others(tmp_path: Path) -> None:
    ModelStore(tmp_path).publish("lungs", draft(), files())
    path = tmp_path / "lungs" / "1" / "manifest.json"
    assert json.loads(path.read_text("utf-8"))["version"] == 1
    assert os.access(path, os.R_OK)
