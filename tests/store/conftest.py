"""Stores of both kinds, empty, each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.registry import _registry

from app.store import ModelStore
from tests.store.makers import NOW, BucketFileSystem


@pytest.fixture
def bucket() -> Iterator[type[BucketFileSystem]]:
    """An object store of this test's own, at `bucket://`."""

    class Bucket(BucketFileSystem):
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]
        reads: ClassVar[list[str]] = []

    fsspec.register_implementation("bucket", Bucket, clobber=True)
    yield Bucket
    _registry.pop("bucket", None)


@pytest.fixture(params=["folder", "bucket"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: type[BucketFileSystem]
) -> ModelStore:
    """An empty store, in a folder and in an object store, at a fixed time."""
    root = "bucket://models" if request.param == "bucket" else str(tmp_path / "models")
    return ModelStore(root, tmp_path / "cache", now=lambda: NOW, pause=lambda seconds: None)
