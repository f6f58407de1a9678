"""What a store lists, resolves and refuses: every kind of damage names its file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

import app
from app.errors import ManifestInvalid, ModelDamaged, ModelNotFound, StoreError
from app.store import Manifest, ModelStore, manifest_text
from app.store.cache import Cache
from app.store.names import incoming_mark
from app.store.roots import Entry, LocalRoot, RemoteRoot, open_root
from tests.store.makers import NOW, BucketFileSystem, draft, files, tensors

Damage = Callable[[bytes], bytes | None]


def put(store: ModelStore, path: str, data: bytes) -> None:
    """Write into a store behind its back."""
    root = store._root
    if isinstance(root, RemoteRoot):
        root.write(data, *path.split("/"))
        return
    place = root.path(*path.split("/"))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(data)


def change(store: ModelStore, path: str, damage: Damage) -> None:
    """Replace a file by what `damage` makes of it; None removes it."""
    root = store._root
    data = damage(root.read(*path.split("/")))
    if data is not None:
        put(store, path, data)
    elif isinstance(root, RemoteRoot):
        root.remove(*path.split("/"))
    else:
        root.path(*path.split("/")).unlink()


def whole(path: str) -> bytes:
    data = files()[path]
    assert isinstance(data, bytes)
    return data


# Listing.


def test_empty_store_lists_nothing_and_says_so(store: ModelStore) -> None:
    assert store.names() == []
    assert store.versions("lungs") == []
    assert store.problems() == []
    with pytest.raises(ModelNotFound, match=r"no model `lungs`; the store `.*models` holds none"):
        store.resolve("lungs")


def test_models_are_listed_and_found(store: ModelStore) -> None:
    for name, times in (("zebra", 1), ("apes", 2), ("a.b-c_1", 1)):
        for _ in range(times):
            store.publish(name, draft(), files())
    assert store.names() == ["a.b-c_1", "apes", "zebra"]
    assert store.versions("apes") == [1, 2]
    assert store.latest("apes") == 2
    assert store.find("apes") == ("apes", 2)
    assert store.find("apes@1") == ("apes", 1)
    assert store.manifest("apes").label == "apes@2"
    assert store.problems() == []


def test_tenth_version_is_after_the_ninth(store: ModelStore) -> None:
    for version in (9, 10, 2):
        store.publish("lungs", draft(), files(), version=version)
    assert store.versions("lungs") == [2, 9, 10]
    assert store.latest("lungs") == 10


def test_newest_version_has_a_mark_that_changes_with_its_files(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound):
        store.newest("lungs")
    store.publish("lungs", draft(), files())
    first = store.newest("lungs")
    assert first.version == 1
    assert store.newest("lungs") == first
    store.publish("lungs", draft(), files())
    second = store.newest("lungs")
    assert second.version == 2
    assert second.mark != first.mark
    # One that is still being published is no version yet, and hides nothing.
    put(store, "lungs/3/weights.safetensors", b"half of it")
    assert store.newest("lungs") == second
    # Mended in place, its size the same: it is worth another try.
    put(store, "lungs/2/weights.safetensors", whole("weights.safetensors"))
    assert store.newest("lungs").version == 2
    assert store.newest("lungs") != second


def test_look_at_the_newest_reads_no_file_and_few_folders(
    bucket: type[BucketFileSystem], tmp_path: Path
) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    for _ in range(5):
        store.publish("lungs", draft(), files())
    bucket.reads.clear()
    listed = 0
    listing = store._root.entries

    def entries(*path: str) -> dict[str, Entry]:
        nonlocal listed
        listed += 1
        return listing(*path)

    store._root.entries = entries  # type: ignore[method-assign]
    assert store.newest("lungs").version == 5
    assert (listed, bucket.reads) == (2, [])


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("heart", "no model `heart`; known: lungs"),
        ("heart@1", "no model `heart`; known: lungs"),
        ("lungs@3", "model `lungs` has no version 3; known versions: 1, 2"),
        ("lungs@latest", "`lungs@latest` names no model; expected `name` or `name@version`"),
        ("lungs@01", "`lungs@01` names no model"),
        ("../lungs", "`../lungs` names no model"),
        ("", "`` names no model"),
    ],
)
def test_unknown_model_is_told_with_those_that_are_known(
    store: ModelStore, label: str, told: str
) -> None:
    store.publish("lungs", draft(), files())
    store.publish("lungs", draft(), files())
    with pytest.raises(ModelNotFound) as caught:
        store.resolve(label)
    assert told in caught.value.detail
    assert "lungs" in caught.value.detail or "1, 2" in caught.value.detail


@given(label=st.text(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_label_leads_out_of_the_store(tmp_path: Path, label: str) -> None:
    store = ModelStore(tmp_path / "models")
    with pytest.raises(ModelNotFound):
        store.resolve(label)
    assert store.versions(label) == []


def test_many_names_are_counted_and_not_all_told(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish("m0", draft(), files())
    for number in range(1, 25):
        shutil.copytree(tmp_path / "m0", tmp_path / f"m{number}")
    with pytest.raises(ModelNotFound, match=r"known: m0, .* and 5 more$"):
        store.latest("x")


def test_foreign_and_unfinished_folders_break_nothing_and_are_told(store: ModelStore) -> None:
    store.publish("lungs", draft(), files())
    put(store, "README.md", b"files beside the models are nobody's business")
    put(store, ".git/HEAD", b"neither are hidden folders")
    put(store, "Old Models/1/manifest.json", b"{}")
    put(store, "empty/notes.txt", b"")
    put(store, "lungs/v2/manifest.json", b"{}")
    put(store, "lungs/7/weights.safetensors", b"")
    put(store, "lungs/8/manifest.json", b"{")
    put(store, "lungs/1/notes.txt", b"?")
    put(store, f"lungs/{incoming_mark(NOW - 60)}/x", b"")
    put(store, f"lungs/{incoming_mark(NOW - 48 * 3600)}/x", b"")

    assert store.names() == ["lungs"]
    assert store.versions("lungs") == [1, 8]
    assert store.resolve("lungs@1").version == 1
    told = sorted(str(problem).replace(store.root, "ROOT") for problem in store.problems())
    expected = [
        ("`ROOT/Old Models`: ", "not a model's name: expected at most 64"),
        ("`ROOT/empty`: ", "holds no version"),
        ("`ROOT/lungs/.incoming-", "left by a publish that was killed 48 hours ago"),
        ("`ROOT/lungs/.incoming-", "a publish at work or killed; swept once it is 24 hours old"),
        ("`ROOT/lungs/1/notes.txt`: ", "not in `manifest.json`"),
        ("`ROOT/lungs/7`: ", "no version: it has no `manifest.json`"),
        ("`ROOT/lungs/8/manifest.json`: ", "is not JSON in UTF-8"),
        ("`ROOT/lungs/v2`: ", "not a version: expected a whole number from 1"),
    ]
    assert len(told) == len(expected)
    for one, (start, rest) in zip(told, expected, strict=True):
        assert one.startswith(start)
        assert rest in one
    with pytest.raises(ManifestInvalid, match=r"lungs/8/manifest.json` is not JSON"):
        store.resolve("lungs")


# Resolving.


def test_resolved_model_is_what_was_published(store: ModelStore) -> None:
    store.publish("lungs", draft(), files())
    spec = store.resolve("lungs")
    assert spec.label == "lungs@1"
    assert spec.architecture == "ternausnet11"
    assert spec.parameters == {"upsampling": "transposed-3x3", "align_corners": False}
    assert spec.task == "binary"
    assert [(one.name, one.colour) for one in spec.classes] == [("lung", (255, 128, 0))]
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.stride == 32
    assert (spec.halo.top, spec.halo.left, spec.halo.bottom, spec.halo.right) == (
        *(128, 128),
        *(160, 160),
    )
    assert (spec.threshold, spec.precision, spec.fit) == (0.5, "auto", "pad")
    assert spec.digest == store.manifest("lungs").digest
    assert Path(spec.weights).is_absolute()
    loaded = load(Path(spec.weights).read_bytes())
    assert all(np.array_equal(loaded[name], array) for name, array in tensors().items())
    assert Path(spec.sample_picture).read_bytes() == whole("sample.jpg")
    assert Path(spec.sample_mask).read_bytes() == whole("sample.mask.png")


def test_same_model_has_the_same_digest_wherever_it_lies(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    here = ModelStore(tmp_path / "models")
    there = ModelStore("bucket://models", tmp_path / "cache")
    digests = set()
    for store in (here, there):
        store.publish("lungs", draft(), files())
        store.publish("lungs", draft(), files())
        digests |= {store.resolve("lungs@1").digest, store.resolve("lungs@2").digest}
    assert len(digests) == 1


def test_local_files_are_used_in_place(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "models"), tmp_path / "cache")
    store.publish("lungs", draft(), files())
    place = tmp_path / "models" / "lungs" / "1"
    assert store.resolve("lungs").weights == str(place / "weights.safetensors")
    assert not (tmp_path / "cache").exists()


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    ModelStore(tmp_path / "real").publish("lungs", draft(), files())
    place = tmp_path / "linked" / "lungs" / "1"
    place.mkdir(parents=True)
    for path in (tmp_path / "real" / "lungs" / "1").iterdir():
        (place / path.name).symlink_to(path)
    (tmp_path / "linked" / "lungs" / "2").symlink_to(tmp_path / "nowhere")
    store = ModelStore(tmp_path / "linked")
    assert store.resolve("lungs").version == 1
    assert store.problems() == []


# Damage.

SHAPED = save(tensors(classes=3))
OTHER = save({name: array + 1 for name, array in tensors().items()})
DAMAGES: list[tuple[str, str, Damage, list[str]]] = [
    (
        "missing",
        "weights.safetensors",
        lambda data: None,
        ["expected a file of 696 bytes", "nothing"],
    ),
    ("missing", "sample.mask.png", lambda data: None, ["expected a file of 11 bytes"]),
    ("missing", "README.md", lambda data: None, ["expected a file of 10 bytes"]),
    ("truncated", "weights.safetensors", lambda data: data[:-5], ["696 bytes", "691 bytes"]),
    ("truncated", "sample.jpg", lambda data: b"", ["expected 12 bytes, found 0 bytes"]),
    ("altered", "weights.safetensors", lambda data: OTHER, ["expected sha256 f53a7", "found sha"]),
    ("altered", "sample.jpg", lambda data: data[:-1] + b"X", ["expected sha256 7b62", "found sha"]),
    ("altered", "README.md", lambda data: data + b"more", ["expected 10 bytes, found 14 bytes"]),
    (
        "wrongly shaped",
        "weights.safetensors",
        lambda data: SHAPED,
        ["expected tensor `final.weight` F32[1,4,1,1], found F32[3,4,1,1]"],
    ),
    (
        "not safetensors",
        "weights.safetensors",
        lambda data: b"PK\3\4" + data[4:],
        ["expected a header length from 2 to"],
    ),
]


@pytest.mark.parametrize(("kind", "file", "damage", "told"), DAMAGES)
def test_damage_names_the_file_and_what_was_expected(
    store: ModelStore, kind: str, file: str, damage: Damage, told: list[str]
) -> None:
    store.publish("lungs", draft(), files())
    change(store, f"lungs/1/{file}", damage)
    with pytest.raises(ModelDamaged) as caught:
        store.resolve("lungs")
    detail = caught.value.detail
    where = f"`{store.root}/lungs/1/{file}`"
    if not (isinstance(store._root, RemoteRoot) and kind in ("wrongly shaped", "not safetensors")):
        # A download stops at its first difference; what it holds is no longer looked into.
        assert f"{where} is {kind}: " in detail
        assert all(one in detail for one in told)
    assert where in detail
    assert "expected" in detail

    report = store.verify("lungs")
    assert not report.sound
    assert {one.file for one in report.findings} == {file}
    assert kind in {one.kind for one in report.findings}
    assert all(any(part in str(one) for one in report.findings) for part in told)
    with pytest.raises(ModelDamaged, match="model `lungs@1` is damaged"):
        report.require_sound()


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_flipped_bit_of_any_file_passes(tmp_path: Path, place: int, bit: int) -> None:
    store = ModelStore(tmp_path / "models")
    if not store.names():
        store.publish("lungs", draft(), files())
    names = sorted(files())
    name = names[place % len(names)]
    data = bytearray(whole(name))
    data[(place // len(names)) % len(data)] ^= 1 << bit
    put(store, f"lungs/1/{name}", bytes(data))
    try:
        with pytest.raises(ModelDamaged, match=name):
            store.resolve("lungs")
    finally:
        put(store, f"lungs/1/{name}", whole(name))
    assert store.verify("lungs").sound


def test_all_damage_is_told_at_once(store: ModelStore) -> None:
    store.publish("lungs", draft(), files())
    change(store, "lungs/1/README.md", lambda data: None)
    change(store, "lungs/1/sample.jpg", lambda data: data + b"1")
    with pytest.raises(ModelDamaged) as caught:
        store.resolve("lungs")
    assert "README.md` is missing" in caught.value.detail
    assert "sample.jpg` is altered" in caught.value.detail
    assert {str(one).split("`")[1].rsplit("/", 1)[-1] for one in store.problems()} == {
        "README.md",
        "sample.jpg",
    }


def republish_manifest(store: ModelStore, **changes: object) -> None:
    """Write a manifest whose sha256 and size fit, and whose tensors are another net's."""
    manifest = json.loads(manifest_text(store.manifest("lungs")))
    put(store, "lungs/1/manifest.json", json.dumps(manifest | changes).encode())


def test_shape_that_the_manifest_does_not_know_is_named_without_a_net(store: ModelStore) -> None:
    store.publish("other", draft(), files(tensors(classes=5)))
    store.publish("lungs", draft(), files())
    expected = store.manifest("other").model_dump(mode="json")["tensors"]
    republish_manifest(store, tensors=expected)
    with pytest.raises(ModelDamaged) as caught:
        store.resolve("lungs")
    assert caught.value.detail == (
        f"model `lungs@1` is damaged: `{store.root}/lungs/1/weights.safetensors` is wrongly "
        "shaped: expected tensor `final.weight` F32[5,4,1,1], found F32[1,4,1,1]"
    )


def test_many_wrong_tensors_are_counted(store: ModelStore) -> None:
    arrays = {f"layer.{i}": np.zeros(i + 1, np.float32) for i in range(6)}
    store.publish("other", draft(), files(arrays))
    store.publish("lungs", draft(), files())
    expected = store.manifest("other").model_dump(mode="json")["tensors"]
    republish_manifest(store, tensors=expected)
    findings = [str(one) for one in store.verify("lungs").findings]
    assert len(findings) == 4
    assert "expected no tensor `encoder.0.bias`, found F32[4]" in findings[0]
    assert "found 6 more that differ" in findings[-1]


def test_numbers_are_looked_at_when_asked(store: ModelStore) -> None:
    arrays = tensors()
    store.publish("lungs", draft(), files(arrays))
    arrays["final.weight"][0] = np.inf
    bad = save(arrays)
    put(store, "lungs/1/weights.safetensors", bad)
    manifest = store.manifest("lungs").model_dump(mode="json")
    manifest["files"]["weights.safetensors"]["sha256"] = hashlib.sha256(bad).hexdigest()
    republish_manifest(store, files=manifest["files"])
    assert store.verify("lungs").sound
    (finding,) = store.verify("lungs", finite=True).findings
    assert finding.kind == "not finite"
    assert "tensor `final.weight`" in finding.found


def test_sound_version_is_reported_with_its_extras(store: ModelStore) -> None:
    store.publish("lungs", draft(), files())
    put(store, "lungs/1/notes.txt", b"?")
    report = store.verify("lungs", finite=True)
    assert report.sound
    assert report.extras == ("notes.txt",)
    assert report.files == 4
    assert report.size_bytes == sum(len(whole(name)) for name in files())
    assert report.label == "lungs@1"
    assert report.where == f"{store.root}/lungs/1"
    report.require_sound()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "is not JSON"),
        (b"{}", "`architecture`: expected a value, found nothing"),
        (b"\x00" * 9, "is not JSON"),
    ],
)
def test_damaged_manifest_is_named(store: ModelStore, raw: bytes, told: str) -> None:
    store.publish("lungs", draft(), files())
    put(store, "lungs/1/manifest.json", raw)
    with pytest.raises(ManifestInvalid) as caught:
        store.resolve("lungs")
    assert f"`{store.root}/lungs/1/manifest.json`" in caught.value.detail
    assert told in caught.value.detail


def test_copied_folder_is_refused_since_it_names_another_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish("lungs", draft(), files())
    shutil.copytree(tmp_path / "lungs" / "1", tmp_path / "lungs" / "2")
    with pytest.raises(ManifestInvalid, match="expected lungs@2, found lungs@1"):
        store.resolve("lungs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish("lungs", draft(), files())
    (tmp_path / "lungs" / "1" / "sample.jpg").chmod(0)
    with pytest.raises(StoreError, match=r"cannot use `.*sample.jpg`: PermissionError"):
        store.resolve("lungs")


def test_folder_in_the_place_of_a_file_is_missing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish("lungs", draft(), files())
    path = tmp_path / "lungs" / "1" / "README.md"
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelDamaged, match=r"README.md` is missing"):
        store.resolve("lungs")


# The cache of a remote store.


def test_second_start_downloads_nothing(tmp_path: Path, bucket: type[BucketFileSystem]) -> None:
    ModelStore("bucket://models").publish("lungs", draft(), files())
    first = ModelStore("bucket://models", tmp_path / "cache").resolve("lungs")
    bucket.reads.clear()
    assert ModelStore("bucket://models", tmp_path / "cache").resolve("lungs") == first
    assert bucket.reads == ["manifest.json"]


def test_versions_share_the_files_that_are_the_same(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    store.publish("lungs", draft(), files())
    store.publish("lungs", draft(threshold=0.3), files())
    first, second = store.resolve("lungs@1"), store.resolve("lungs@2")
    assert first.weights == second.weights
    assert first.digest != second.digest


def test_damaged_cache_is_downloaded_again(tmp_path: Path, bucket: type[BucketFileSystem]) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    store.publish("lungs", draft(), files())
    path = Path(store.resolve("lungs").weights)
    path.write_bytes(b"half")
    assert store.resolve("lungs").weights == str(path)
    assert path.read_bytes() == whole("weights.safetensors")


def test_damaged_download_leaves_nothing_in_the_cache(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    store.publish("lungs", draft(), files())
    put(store, "lungs/1/weights.safetensors", OTHER)
    with pytest.raises(ModelDamaged, match=r"weights.safetensors` is altered: expected sha256"):
        store.resolve("lungs")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_file_that_vanishes_during_the_download_is_missing(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    store.publish("lungs", draft(), files())
    manifest = store.manifest("lungs")

    def gone(start: int, end: int) -> bytes:
        raise FileNotFoundError

    with pytest.raises(ModelDamaged, match="`there` is missing: expected a file of 10 bytes"):
        Cache(tmp_path / "cache").fetch("README.md", "there", manifest.files["README.md"], gone)


def test_starts_at_the_same_time_share_one_cache(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    ModelStore("bucket://models").publish("lungs", draft(), files())
    start, found = threading.Barrier(6), []

    def begin() -> None:
        store = ModelStore("bucket://models", tmp_path / "cache")
        start.wait(10)
        found.append(store.resolve("lungs"))

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) == 4


def test_killed_download_is_swept_from_the_cache(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    old, young = cache / incoming_mark(NOW - 90_000), cache / incoming_mark(NOW - 60)
    for path in (old, young):
        path.write_bytes(b"half")
    store = ModelStore("bucket://models", cache, now=lambda: NOW)
    store.publish("lungs", draft(), files())
    store.resolve("lungs")
    assert not old.exists()
    assert young.exists()


def test_cache_that_cannot_be_written_is_named(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    store = ModelStore("bucket://models", tmp_path / "cache")
    store.publish("lungs", draft(), files())
    with pytest.raises(StoreError, match=r"cannot keep `bucket://models/lungs/1/.*` in `.*cache`"):
        store.resolve("lungs")


def test_listing_is_never_one_of_before(tmp_path: Path, bucket: type[BucketFileSystem]) -> None:
    store = ModelStore("bucket://models", tmp_path / "cache")
    assert store.names() == []
    ModelStore("bucket://models").publish("lungs", draft(), files())
    assert store.names() == ["lungs"]


# Roots.


def test_memory_url_is_a_store(tmp_path: Path) -> None:
    # fsspec's memory is one for the whole process: a name of our own, and removed at the end.
    root = f"memory://ternaus-{os.getpid()}-{id(tmp_path)}/models"
    try:
        store = ModelStore(root, tmp_path / "cache")
        assert store.publish("lungs", draft(), files()) == 1
        assert store.publish("lungs", draft(), files()) == 2
        assert store.resolve("lungs").label == "lungs@2"
        assert store.problems() == []
    finally:
        fsspec.filesystem("memory").rm(root.removesuffix("/models"), recursive=True)


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "local://{}"])
def test_forms_of_a_local_root_are_one_store(tmp_path: Path, form: str) -> None:
    ModelStore(tmp_path).publish("lungs", draft(), files())
    assert isinstance(open_root(form.format(tmp_path)), LocalRoot)
    assert ModelStore(form.format(tmp_path)).resolve("lungs").label == "lungs@1"


def test_relative_root_gives_absolute_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ModelStore("models")
    store.publish("lungs", draft(), files())
    assert store.root == "models"
    assert store.resolve("lungs").weights == str(
        tmp_path / "models" / "lungs" / "1" / "weights.safetensors"
    )


@pytest.mark.parametrize("url", ["", "nonsense://x", "we://"])
def test_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(StoreError, match="address"):
        ModelStore(url)


def test_credentials_in_a_url_are_never_shown(bucket: type[BucketFileSystem]) -> None:
    assert ModelStore("bucket://user:secret@models").root == "bucket://models"


def test_s3_without_its_extra_names_it() -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from app.errors import StoreError\n"
        "from app.store import ModelStore\n"
        "try: ModelStore('s3://bucket/models')\n"
        "except StoreError as exc: print(exc)\n"
    )
    place = Path(app.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, timeout=60, check=True
    )
    told = done.stdout.decode()
    assert "the store `s3://bucket/models` needs a package that is not installed" in told
    assert "hint: pip install 'ternausnet-serve[s3]'" in told


def test_backend_that_fails_is_a_store_error_that_names_the_path(
    tmp_path: Path, bucket: type[BucketFileSystem]
) -> None:
    class Offline(bucket):  # type: ignore[misc, valid-type]
        def ls(self, path: str, **rest: object) -> list[object]:
            raise ConnectionError("no route")

    fsspec.register_implementation("bucket", Offline, clobber=True)
    with pytest.raises(StoreError, match="cannot use `bucket://models/lungs`: ConnectionError: no"):
        ModelStore("bucket://models").resolve("lungs")


def test_store_needs_neither_torch_nor_an_architecture() -> None:
    code = (
        "import sys, app.store\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('app.arch')])"
    )
    place = Path(app.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, timeout=60, check=True
    )
    assert done.stdout.decode().strip() == "[]"


def test_manifest_is_what_the_room_exports() -> None:
    import app.store as room

    assert room.Manifest is Manifest
    assert sorted(room.__all__) == room.__all__
    assert all(hasattr(room, name) for name in room.__all__)
