"""The few writes that publishing to a local disk makes; a kill may fall between any two."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from app.store.manifest import FileEntry
from app.store.tensors import CHUNK


class Disk:
    """Writes that survive a power cut once the folder above is synchronised too."""

    def make_folder(self, path: Path) -> None:
        """With its parents; nothing happens where it is there."""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, source: Path | bytes) -> FileEntry:
        """A new file, on the platter when this returns; what was read from `source`."""
        digest, size = hashlib.sha256(), 0
        with path.open("xb") as file:
            for block in blocks(source):
                digest.update(block)
                size += len(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return FileEntry.model_construct(sha256=digest.hexdigest(), size=size)

    def protect(self, path: Path) -> None:
        """Nobody writes to this file by mistake."""
        path.chmod(0o444)

    def synchronise(self, folder: Path) -> None:
        """The names in `folder` are on the platter. Elsewhere than on POSIX it cannot be asked."""
        if os.name == "posix":
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """The one step that publishes. Raises OSError where `new` is there and not empty."""
        os.rename(old, new)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """With all that is in it."""
        shutil.rmtree(path)


def blocks(source: Path | bytes) -> Iterator[bytes]:
    """The bytes of `source`, some megabytes at a time."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(CHUNK):
            yield block


def measure(source: Path | bytes) -> FileEntry:
    """What a file of these bytes must be, bit for bit."""
    digest, size = hashlib.sha256(), 0
    for block in blocks(source):
        digest.update(block)
        size += len(block)
    return FileEntry.model_construct(sha256=digest.hexdigest(), size=size)
