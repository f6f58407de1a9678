"""Files of a remote store on a local disk, each named by its sha256.

A file enters under its own name only when whole and verified, by rename, so that any number of
processes may share the folder. What is in it is never trusted: it is hashed again at every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from app.errors import ModelDamaged, StoreError
from app.store.inspection import Finding, missing, wrong_digest, wrong_size
from app.store.manifest import FileEntry
from app.store.names import STALE_AFTER_S, incoming_mark, mark_age_s
from app.store.tensors import CHUNK, ReadRange


class Cache:
    """A folder of verified files."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._now = now

    def path(self, name: str, entry: FileEntry) -> Path:
        """Where a file lies once it is here; its suffix stays, since readers may look at it."""
        suffix = PurePosixPath(name).suffix
        return self.folder / entry.sha256[:2] / f"{entry.sha256}{suffix}"

    def fetch(self, name: str, where: str, entry: FileEntry, read: ReadRange) -> Path:
        """The local path of a file, downloaded with `read` where it is not here yet.

        Raises ModelDamaged where the bytes that came are not those that `entry` says, StoreError
        where the folder cannot be written.
        """
        path = self.path(name, entry)
        try:
            if self._holds(path, name, entry):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sweep()
            self._download(path, name, where, entry, read)
        except OSError as exc:
            raise StoreError(
                f"cannot keep `{where}` in `{self.folder}`: {type(exc).__name__}: {exc}"
            ) from exc
        return path

    def sweep(self) -> None:
        """Remove what downloads left that were killed long ago."""
        for path in self.folder.glob(".incoming-*"):
            age = mark_age_s(path.name, self._now())
            if age is not None and age > STALE_AFTER_S:
                path.unlink(missing_ok=True)

    def _holds(self, path: Path, name: str, entry: FileEntry) -> bool:
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        return wrong_digest(name, str(path), entry, sha256) is None

    def _download(
        self, path: Path, name: str, where: str, entry: FileEntry, read: ReadRange
    ) -> None:
        incoming = self.folder / incoming_mark(self._now())
        digest, size = hashlib.sha256(), 0
        try:
            with incoming.open("xb") as file:
                for start in range(0, entry.size, CHUNK):
                    try:
                        block = read(start, min(start + CHUNK, entry.size))
                    except FileNotFoundError as exc:
                        raise ModelDamaged(str(missing(name, where, entry))) from exc
                    digest.update(block)
                    size += len(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            damage: Finding | None = wrong_size(name, where, entry, size)
            damage = damage or wrong_digest(name, where, entry, digest.hexdigest())
            if damage:
                raise ModelDamaged(str(damage))
            # Two that downloaded the same file replace it by the same bytes; a damaged one is
            # replaced too, and whoever has it open keeps the old one.
            os.replace(incoming, path)
        finally:
            with contextlib.suppress(OSError):
                incoming.unlink(missing_ok=True)
