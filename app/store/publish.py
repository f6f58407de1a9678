"""Publishing a version: all of it at once or nothing, and never twice.

On a local disk the version is written into a hidden folder beside its place, read back, made
durable and then renamed into place: the rename is the publication, and it fails where somebody else
came first.

Object stores cannot rename. There the files come first and `manifest.json` last, and a folder
without a manifest is no version. So that two publishers never write into one folder, each first
puts a claim (a small file with a name of its own) into it, lists the folder, and goes on only if
its claim is the only one; otherwise it withdraws. Of two claims the one that was put later is
listed together with the earlier, so at most one publisher goes on; both may withdraw, which is why
they wait a moment of random length. This needs listings that show finished writes (S3, GCS and
Azure promise it) and no exclusive create; where there is one, it guards the manifest as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import ModelDamaged, StoreError, VersionExists
from app.store.disks import Disk, measure
from app.store.inspection import inspect
from app.store.manifest import Draft, FileEntry, Manifest, complete, manifest_text
from app.store.names import (
    MANIFEST,
    STALE_AFTER_S,
    WEIGHTS,
    claim_mark,
    incoming_mark,
    mark_age_s,
    version_of,
)
from app.store.roots import Entry, LocalRoot, RemoteRoot, Root
from app.store.tensors import HeaderFault, elements, read_tensors, signatures, signatures_digest

# Each try meets another publisher at the very same moment; so many in a row do not happen.
CLAIM_TRIES = 20
CLAIM_PAUSE_S = 0.25

Files = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class Publisher:
    """Publishes into one root. Clock, pause and disk are arguments so that tests can own them."""

    root: LocalRoot | RemoteRoot
    disk: Disk = field(default_factory=Disk)
    now: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep

    def publish(self, name: str, draft: Draft, files: Files, version: int | None) -> int:
        """The number of the new version: `version`, or the one after the last.

        Raises VersionExists, ManifestInvalid, ModelDamaged or StoreError; then nothing was
        published. (Only a remote store that is lost during the very last write leaves that open.)
        """
        with contextlib.suppress(StoreError):  # who may write may yet not be allowed to delete
            self.sweep(name)
        if version is not None:
            self._require_free(name, version)
        if isinstance(self.root, LocalRoot):
            return self._by_rename(self.root, name, draft, files, version)
        return self._by_manifest(self.root, name, draft, files, version)

    def sweep(self, name: str) -> list[str]:
        """Remove what publishes of `name` left that were killed long ago; the paths removed."""
        if isinstance(self.root, LocalRoot):
            return self._sweep_disk(self.root, name)
        return self._sweep_objects(self.root, name)

    # On a local disk.

    def _by_rename(
        self, root: LocalRoot, name: str, draft: Draft, files: Files, version: int | None
    ) -> int:
        shelf = root.path(name)
        incoming = shelf / incoming_mark(self.now())
        with self._disk_errors(root, name):
            try:
                self.disk.make_folder(incoming)
                entries = {
                    file: self.disk.write(incoming / file, source) for file, source in files.items()
                }
                while True:
                    number = version or self._next(name)
                    manifest = _manifest(name, number, draft, entries, incoming / WEIGHTS)
                    self.disk.write(incoming / MANIFEST, manifest_text(manifest).encode())
                    inspect(root, manifest, (name, incoming.name), finite=True).require_sound()
                    for file in (*files, MANIFEST):
                        self.disk.protect(incoming / file)
                    self.disk.synchronise(incoming)
                    if self._renamed(incoming, shelf / str(number)):
                        break
                    if version is not None:
                        self._require_free(name, number)
                    self.disk.remove_file(incoming / MANIFEST)
                self.disk.synchronise(shelf)
                return number
            finally:
                # After the rename there is nothing of that name; after a fault, nothing to keep.
                with contextlib.suppress(OSError):
                    self.disk.remove_folder(incoming)

    def _renamed(self, incoming: Path, place: Path) -> bool:
        """Whether the rename succeeded; False where somebody else has the place."""
        try:
            # POSIX lets a folder replace an empty one, which no published version is.
            self.disk.rename(incoming, place)
        except OSError:
            if not os.path.lexists(place):
                raise
            return False
        return True

    def _sweep_disk(self, root: LocalRoot, name: str) -> list[str]:
        swept = []
        for entry in self._stale(root.entries(name)):
            with contextlib.suppress(OSError):
                self.disk.remove_folder(root.path(name, entry))
                swept.append(root.where(name, entry))
        return swept

    @contextlib.contextmanager
    def _disk_errors(self, root: LocalRoot, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StoreError(
                f"cannot publish `{name}` in `{root.where()}`: {type(exc).__name__}: {exc}"
            ) from exc

    # In an object store.

    def _by_manifest(
        self, root: RemoteRoot, name: str, draft: Draft, files: Files, version: int | None
    ) -> int:
        entries = {file: measure(source) for file, source in files.items()}
        number, claim = self._claim(root, name, version)
        try:
            manifest = _manifest(name, number, draft, entries, files[WEIGHTS])
            for file, source in files.items():
                root.write(source, name, str(number), file)
            inspect(root, manifest, (name, str(number)), finite=True).require_sound()
            if claim not in root.entries(name, str(number)):
                raise StoreError(
                    f"the claim on `{root.where(name, str(number))}` is gone; publish again"
                )
        except BaseException:
            # The manifest was not written, so these files are nobody's.
            self._withdraw(root, name, number, (*files, claim))
            raise
        # From here on nothing is taken back: a write whose answer was lost may have succeeded.
        try:
            root.create(manifest_text(manifest).encode(), name, str(number), MANIFEST)
        except FileExistsError as exc:
            raise _exists(root, name, number) from exc
        self._withdraw(root, name, number, (claim,))
        return number

    def _claim(self, root: RemoteRoot, name: str, version: int | None) -> tuple[int, str]:
        """A version that nobody else publishes, and the claim that says so."""
        for _ in range(CLAIM_TRIES):
            if version is not None:
                self._require_free(name, version)
            number = version or self._next(name)
            claim = claim_mark(self.now())
            root.write(b"being published\n", name, str(number), claim)
            if set(root.entries(name, str(number))) == {claim}:
                return number, claim
            self._withdraw(root, name, number, (claim,))
            self.pause(random.uniform(0, CLAIM_PAUSE_S))
        raise StoreError(f"`{root.where(name)}` is being published to by too many; try again")

    def _withdraw(self, root: RemoteRoot, name: str, number: int, files: tuple[str, ...]) -> None:
        """Best effort: what stays is no version, and is swept when old."""
        for file in files:
            with contextlib.suppress(StoreError):
                root.remove(name, str(number), file)
        root.remove_if_empty(name, str(number))

    def _sweep_objects(self, root: RemoteRoot, name: str) -> list[str]:
        swept = []
        for folder, entry in root.entries(name).items():
            if not entry.folder or version_of(folder) is None:
                continue
            present = root.entries(name, folder)
            stale = list(self._stale(present))
            claims = [file for file in present if mark_age_s(file, self.now()) is not None]
            if not stale or len(stale) < len(claims):
                continue  # nobody's, or somebody is at work
            # Claims last: a sweep that is killed must leave the sign by which the next one knows.
            others = [] if MANIFEST in present else [f for f in present if f not in claims]
            for file in (*others, *stale):
                root.remove(name, folder, file)
                swept.append(root.where(name, folder, file))
            root.remove_if_empty(name, folder)
        return swept

    # On both.

    def _stale(self, entries: Mapping[str, Entry]) -> Iterator[str]:
        for name in entries:
            age = mark_age_s(name, self.now())
            if age is not None and age > STALE_AFTER_S:
                yield name

    def _next(self, name: str) -> int:
        """One more than the highest number in use, published or not."""
        numbers = (version_of(entry) for entry in self.root.entries(name))
        for number in sorted((one for one in numbers if one is not None), reverse=True):
            if self._taken(name, number):
                return number + 1
        return 1

    def _taken(self, name: str, version: int) -> bool:
        if isinstance(self.root, LocalRoot):
            return str(version) in self.root.entries(name)
        # Backends that do have folders keep an empty one where a claim was taken back.
        return bool(self.root.entries(name, str(version)))

    def _require_free(self, name: str, version: int) -> None:
        if self._taken(name, version):
            raise _exists(self.root, name, version)


def _exists(root: Root, name: str, version: int) -> VersionExists:
    if MANIFEST in root.entries(name, str(version)):
        return VersionExists(
            f"`{name}@{version}` is published, and a published version never changes\n"
            "hint: publish without a version to get the next one"
        )
    return VersionExists(
        f"`{root.where(name, str(version))}` is taken by a publish that is at work or was killed; "
        f"what was killed is swept after {STALE_AFTER_S / 3600:.0f} hours\n"
        "hint: publish without a version to get the next one"
    )


def _manifest(
    name: str, version: int, draft: Draft, files: Mapping[str, FileEntry], weights: Path | bytes
) -> Manifest:
    """The draft, completed by what can be measured."""

    def read(start: int, end: int) -> bytes:
        if isinstance(weights, bytes):
            return weights[start:end]
        return LocalRoot(weights.parent).read(weights.name, start=start, end=end)

    try:
        tensors = read_tensors(read, files[WEIGHTS].size)
    except HeaderFault as fault:
        raise ModelDamaged(f"`{WEIGHTS}` of `{name}` is not safetensors: {fault}") from fault
    shapes = signatures(tensors)
    return complete(
        draft,
        name=name,
        version=version,
        files={file: entry.model_dump() for file, entry in files.items()},
        tensors={
            "digest": signatures_digest(shapes),
            "elements": elements(tensors),
            "shapes": shapes,
        },
    )
