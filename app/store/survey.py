"""What in a store is no sound version, found without hashing anything.

Listing passes over unfinished and foreign folders in silence, so that one of them cannot stop a
server; here they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import ManifestInvalid
from app.store.inspection import extras, missing, wrong_size
from app.store.manifest import Manifest, parse_manifest
from app.store.names import (
    MANIFEST,
    NAME_RULE,
    STALE_AFTER_S,
    VERSION_RULE,
    is_name,
    mark_age_s,
    version_of,
)
from app.store.roots import Entry, Root


@dataclass(frozen=True, slots=True)
class Problem:
    """A path of the store, and what is wrong with it."""

    where: str
    detail: str

    def __str__(self) -> str:
        return f"`{self.where}`: {self.detail}"


def read_manifest(root: Root, name: str, version: int) -> Manifest:
    """Raises FileNotFoundError, ManifestInvalid or StoreError."""
    path = (name, str(version), MANIFEST)
    return parse_manifest(root.read(*path), where=root.where(*path), name=name, version=version)


def survey(root: Root, now_s: float) -> Iterator[Problem]:
    """Every problem, by path. Hidden names that are not ours, and files beside them, are passed."""
    for name, entry in sorted(root.entries().items()):
        if not entry.folder or name.startswith("."):
            continue
        if not is_name(name):
            yield Problem(root.where(name), f"not a model's name: expected {NAME_RULE}")
            continue
        versions = 0
        for folder, child in sorted(root.entries(name).items()):
            where = root.where(name, folder)
            age = mark_age_s(folder, now_s)
            if age is not None:
                yield Problem(where, _unfinished(age))
            elif child.folder and version_of(folder) is not None:
                versions += 1
                yield from _survey_version(root, name, folder, now_s)
            elif child.folder and not folder.startswith("."):
                yield Problem(where, f"not a version: expected {VERSION_RULE}")
        if not versions:
            yield Problem(root.where(name), "holds no version")


def _survey_version(root: Root, name: str, folder: str, now_s: float) -> Iterator[Problem]:
    where = root.where(name, folder)
    present = root.entries(name, folder)
    ages = {file: mark_age_s(file, now_s) for file in present}
    for age in ages.values():
        if age is not None:
            yield Problem(where, _unfinished(age))
    if MANIFEST not in present:
        yield Problem(where, f"no version: it has no `{MANIFEST}`")
        return
    try:
        manifest = read_manifest(root, name, int(folder))
    except (FileNotFoundError, ManifestInvalid) as exc:
        yield Problem(root.where(name, folder, MANIFEST), str(exc))
        return
    for file, expected in manifest.files.items():
        entry = present.get(file, Entry(True, 0))
        place = root.where(name, folder, file)
        finding = (
            missing(file, place, expected)
            if entry.folder
            else wrong_size(file, place, expected, entry.size)
        )
        if finding:
            yield Problem(
                place, f"{finding.kind}: expected {finding.expected}, found {finding.found}"
            )
    for file in sorted(extras(present, manifest)):
        if ages[file] is None:
            yield Problem(root.where(name, folder, file), f"not in `{MANIFEST}`")


def _unfinished(age_s: float) -> str:
    hours = STALE_AFTER_S / 3600
    if age_s > STALE_AFTER_S:
        return f"left by a publish that was killed {age_s / 3600:.0f} hours ago; the next sweeps it"
    return f"a publish at work or killed; swept once it is {hours:.0f} hours old"
