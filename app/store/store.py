"""A model store: named, numbered, unchanging versions under one root.

    store = ModelStore("model_store")                      # or "s3://bucket/models"
    store.publish("lungs", draft, {"weights.safetensors": Path("best.safetensors"), ...})   # -> 1
    store.resolve("lungs@1").weights                       # a verified file of this machine

The root is a folder, which is used in place, or any URL of fsspec, whose files are kept in a local
cache. A store holds no state and may be used from any thread. It never loads weights, and knows no
architecture: whether a net fits is the engine's to find.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ManifestInvalid, ModelNotFound, StoreError
from app.store.cache import Cache
from app.store.disks import Disk
from app.store.inspection import (
    Finding,
    Report,
    check_weights,
    inspect,
    missing,
    range_reader,
    require_none,
    wrong_size,
)
from app.store.manifest import Draft, Manifest, parse_draft
from app.store.names import (
    CARD,
    FILE_RULE,
    MANIFEST,
    NAME_RULE,
    VERSION_LIMIT,
    VERSION_RULE,
    WEIGHTS,
    is_file_name,
    is_name,
    split_label,
    version_of,
)
from app.store.publish import Files, Publisher
from app.store.roots import LocalRoot, open_root
from app.store.survey import Problem, read_manifest, survey
from app.types import ModelSpec

NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Edition:
    """A version as it lies in a store; the mark changes when one of its files is written again."""

    version: int
    mark: str


class ModelStore:
    """The versions under `root`; `cache` keeps the files of a remote one on this machine.

    Without a `cache`, a remote store uses `~/.cache/ternausnet-serve/models`. `disk`, `now` and
    `pause` are for tests that kill a publish or turn a clock.
    """

    def __init__(
        self,
        root: str | Path,
        cache: Path | None = None,
        *,
        disk: Disk | None = None,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = open_root(root)
        self._cache = cache
        self._now = now
        self._publisher = Publisher(self._root, disk or Disk(), now, pause)

    @property
    def root(self) -> str:
        """The root as a person would write it, without credentials."""
        return self._root.where()

    # Listing.

    def names(self) -> list[str]:
        """Every model with at least one published version, sorted. Raises StoreError."""
        return [name for name in self._names() if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """The published versions of a model, ascending; empty where there is none."""
        if not is_name(name):
            return []
        found = (
            version_of(folder) for folder, entry in self._root.entries(name).items() if entry.folder
        )
        return sorted(
            version
            for version in found
            if version is not None and MANIFEST in self._root.entries(name, str(version))
        )

    def latest(self, name: str) -> int:
        """The highest published version. Raises ModelNotFound that lists the models there are."""
        return self.newest(name).version

    def newest(self, name: str) -> Edition:
        """The highest published version and its mark: a look at two folders, to be repeated often.

        Raises ModelNotFound that lists the models there are, or StoreError.
        """
        folders = self._root.entries(name) if is_name(name) else {}
        versions = (version_of(folder) for folder, entry in folders.items() if entry.folder)
        for version in sorted((v for v in versions if v is not None), reverse=True):
            files = self._root.entries(name, str(version))
            if MANIFEST in files:
                facts = sorted((file, entry.size, entry.stamp) for file, entry in files.items())
                return Edition(version, hashlib.sha256(repr(facts).encode()).hexdigest())
        raise ModelNotFound(f"no model `{name[:100]}`; {self._known()}")

    def find(self, label: str) -> tuple[str, int]:
        """`name` or `name@version` -> a published name and version. Raises ModelNotFound."""
        parts = split_label(label)
        if parts is None:
            raise ModelNotFound(
                f"`{label[:100]}` names no model; expected `name` or `name@version`; "
                f"{self._known()}"
            )
        name, version = parts
        if version is None:
            return name, self.latest(name)
        if MANIFEST not in self._root.entries(name, str(version)):
            versions = self.versions(name)
            if not versions:
                raise ModelNotFound(f"no model `{name}`; {self._known()}")
            known = ", ".join(str(one) for one in versions[-NAMES_SHOWN:])
            raise ModelNotFound(f"model `{name}` has no version {version}; known versions: {known}")
        return name, version

    def problems(self) -> list[Problem]:
        """Unfinished, foreign and visibly damaged folders and files. Hashes nothing."""
        return list(survey(self._root, self._now()))

    # Reading.

    def manifest(self, label: str) -> Manifest:
        """What a version says of itself. Raises ModelNotFound, ManifestInvalid or StoreError."""
        name, version = self.find(label)
        try:
            return read_manifest(self._root, name, version)
        except FileNotFoundError as exc:
            raise ModelNotFound(f"model `{name}@{version}` is gone; {self._known()}") from exc

    def resolve(self, label: str) -> ModelSpec:
        """A version's specification, with every file on this machine and verified just now.

        Raises ModelNotFound, ManifestInvalid, ModelDamaged or StoreError, each naming the file and
        what was expected of it.
        """
        manifest = self.manifest(label)
        return manifest.spec(self._fetch(manifest))

    def fetch(self, label: str) -> dict[str, Path]:
        """Every file of a version on this machine, verified, by its name. Raises as `resolve`."""
        return self._fetch(self.manifest(label))

    def verify(self, label: str, *, finite: bool = False) -> Report:
        """Look at every byte where the store keeps it; `finite` also at every number.

        What is damaged is in the report and not raised. Raises ModelNotFound, ManifestInvalid or
        StoreError.
        """
        manifest = self.manifest(label)
        folder = (manifest.name, str(manifest.version))
        return inspect(self._root, manifest, folder, finite=finite)

    # Writing.

    def publish(
        self,
        name: str,
        manifest_draft: Draft | Mapping[str, Any],
        files: Files,
        version: int | None = None,
    ) -> int:
        """Add a version; its number, which is the next one where `version` is None.

        `files` maps the names in the version to local paths or bytes: `weights.safetensors`,
        `README.md`, and the sample's picture and mask. Raises VersionExists, ManifestInvalid (the
        draft or the names), ModelDamaged (the weights) or StoreError; then nothing was published.
        """
        draft = parse_draft(manifest_draft)
        if not is_name(name):
            raise ManifestInvalid(f"`name`: expected {NAME_RULE}, found `{name[:100]}`")
        if version is not None and not (type(version) is int and 1 <= version <= VERSION_LIMIT):
            raise ManifestInvalid(f"`version`: expected {VERSION_RULE}, found {version!r}")
        _check_sources(files, draft)
        return self._publisher.publish(name, draft, files, version)

    def sweep(self) -> list[str]:
        """Remove what publishes left that were killed long ago; the paths removed."""
        return [path for name in self._names() for path in self._publisher.sweep(name)]

    # Inside.

    def _names(self) -> list[str]:
        entries = self._root.entries()
        return sorted(name for name, entry in entries.items() if entry.folder and is_name(name))

    def _known(self) -> str:
        names = self.names()
        if not names:
            return f"the store `{self.root}` holds none"
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return f"known: {', '.join(names[:NAMES_SHOWN])}{more}"

    def _fetch(self, manifest: Manifest) -> dict[str, Path]:
        folder = (manifest.name, str(manifest.version))
        if isinstance(self._root, LocalRoot):
            inspect(self._root, manifest, folder, finite=False).require_sound()
            place = self._root.path(*folder).absolute()
            return {name: place / name for name in manifest.files}
        # The listing tells at once what is missing or cut short, before anything is downloaded.
        present = self._root.entries(*folder)
        findings: list[Finding] = []
        for name, expected in manifest.files.items():
            where = self._root.where(*folder, name)
            damage = (
                wrong_size(name, where, expected, present[name].size)
                if name in present
                else missing(name, where, expected)
            )
            findings += [damage] if damage else []
        require_none(manifest.label, findings)
        cache = Cache(self._cache or _home_cache(), now=self._now)
        paths = {
            name: cache.fetch(
                name,
                self._root.where(*folder, name),
                entry,
                range_reader(self._root, *folder, name),
            )
            for name, entry in manifest.files.items()
        }
        weights = paths[WEIGHTS]
        require_none(
            manifest.label,
            check_weights(
                self._root.where(*folder, WEIGHTS),
                manifest,
                size=weights.stat().st_size,
                read=range_reader(LocalRoot(weights.parent), weights.name),
                finite=False,
            ),
        )
        return paths


def _check_sources(files: Files, draft: Draft) -> None:
    """Everything there, under names that may be files. Raises ManifestInvalid or StoreError."""
    for name, source in files.items():
        if not is_file_name(name):
            raise ManifestInvalid(f"`files`: expected {FILE_RULE}, found `{name[:100]}`")
        if name == MANIFEST:
            raise ManifestInvalid(f"`files`: expected no `{MANIFEST}`, which publishing writes")
        if isinstance(source, Path) and not source.is_file():
            raise StoreError(f"`{name}` was to be read from `{source}`: expected a file there")
    for name in (WEIGHTS, CARD, draft.sample.picture, draft.sample.mask):
        if name not in files:
            raise ManifestInvalid(f"`files`: expected `{name}`, found {', '.join(sorted(files))}")


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache" / "ternausnet-serve" / "models"
    except RuntimeError as exc:
        raise StoreError(
            "a remote store needs a folder for its files, and there is no home"
        ) from exc
