"""Small models for the store's tests, and doubles that die in the middle of their work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray
from safetensors.numpy import save

from app.store.disks import Disk
from app.store.manifest import FileEntry

Tensors = dict[str, NDArray[Any]]
# 2026-01-15: a fixed clock, so that ages are exact.
NOW = 1_768_435_200.0
DAY = 24 * 3600.0


def tensors(classes: int = 1) -> Tensors:
    """A net of two layers, as the files of a real one name them."""
    random = np.random.default_rng(7)
    return {
        "encoder.0.weight": random.standard_normal((4, 3, 3, 3), dtype=np.float32),
        "encoder.0.bias": random.standard_normal(4, dtype=np.float32),
        "final.weight": random.standard_normal((classes, 4, 1, 1), dtype=np.float32),
    }


def files(arrays: Tensors | None = None, **changes: bytes | Path) -> dict[str, Path | bytes]:
    """What is published; `changes` by the part of the name before its first dot."""
    found: dict[str, Path | bytes] = {
        "weights.safetensors": save(arrays or tensors()),
        "sample.jpg": b"\xff\xd8 a picture",
        "sample.mask.png": b"\x89PNG a mask",
        "README.md": b"# A model\n",
    }
    return found | changes


def draft(**changes: Any) -> dict[str, Any]:
    """A valid draft as plain JSON; `changes` replace whole fields."""
    found: dict[str, Any] = {
        "description": "Finds lungs in radiographs.",
        "architecture": "ternausnet11",
        "parameters": {"upsampling": "transposed-3x3", "align_corners": False},
        "task": "binary",
        "classes": [{"name": "lung", "colour": [255, 128, 0]}],
        "input": {
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "stride": 32,
            "halo": {"top": 128, "left": 128, "bottom": 160, "right": 160},
            "fit": "pad",
        },
        "threshold": 0.5,
        "precision": "auto",
        "sample": {"picture": "sample.jpg", "mask": "sample.mask.png"},
        "licence": {"identifier": "MIT"},
        "provenance": {
            "data": [{"name": "radiographs", "licence": "CC-BY-4.0", "use": "training"}],
            "encoder": "imagenet",
            "command": "ternaus train plan.json",
            "date": "2026-01-15",
            "frameworks": {"torch": "2.11.0"},
        },
        "scores": [
            {
                "measure": "iou",
                "value": 0.9375,
                "averaging": "pixels",
                "data": "radiographs, validation",
                "pictures": 20,
                "counted": 20,
                "of_class": "lung",
            }
        ],
    }
    return found | changes


class Killed(BaseException):
    """The process is gone; not an Exception, so that nothing tidies up after it by mistake."""


class Fuse:
    """Burns down by one at every step; once burnt, every further step raises too."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.taken: list[str] = []

    def step(self, name: str) -> None:
        if self.left <= 0:
            raise Killed(name)
        self.left -= 1
        self.taken.append(name)


class DyingDisk(Disk):
    """A disk whose process is killed before, or in the middle of, the step after the last."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def make_folder(self, path: Path) -> None:
        self._fuse.step("make_folder")
        super().make_folder(path)

    def write(self, path: Path, source: Path | bytes) -> FileEntry:
        try:
            self._fuse.step("write")
        except Killed:
            if path.parent.exists() and not path.exists():
                path.write_bytes(b"half")
            raise
        return super().write(path, source)

    def protect(self, path: Path) -> None:
        self._fuse.step("protect")
        super().protect(path)

    def synchronise(self, folder: Path) -> None:
        self._fuse.step("synchronise")
        super().synchronise(folder)

    def rename(self, old: Path, new: Path) -> None:
        self._fuse.step("rename")
        super().rename(old, new)

    def remove_file(self, path: Path) -> None:
        self._fuse.step("remove_file")
        super().remove_file(path)

    def remove_folder(self, path: Path) -> None:
        self._fuse.step("remove_folder")
        super().remove_folder(path)


class BucketFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory with objects of its own, and a fuse on every write.

    The parent shares one store between all that use it; a subclass per test (`bucket`) does not.
    """

    protocol = "bucket"
    cachable = False
    fuse: ClassVar[Fuse | None] = None
    before_create: ClassVar[Callable[[str], None] | None] = None
    reads: ClassVar[list[str]]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("bucket://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **rest: Any) -> None:
        self._step("pipe_file")
        hook = type(self).before_create
        if mode == "create" and hook is not None:
            hook(path)
        super().pipe_file(path, value, mode=mode, **rest)

    def put_file(self, lpath: str, rpath: str, **rest: Any) -> None:
        self._step("put_file")
        super().put_file(lpath, rpath, **rest)

    def rm_file(self, path: str) -> None:
        self._step("rm_file")
        super()._rm(path)

    def cat_file(self, path: str, **rest: Any) -> bytes:
        type(self).reads.append(path.rsplit("/", 1)[-1])
        return bytes(super().cat_file(path, **rest))

    def _step(self, name: str) -> None:
        fuse = type(self).fuse
        if fuse is not None:
            fuse.step(name)
