"""Is every file of a version what its manifest says? Findings, not exceptions: all are told.

The cheapest question comes first: present, size, sha256; then whether the weights are a well-formed
safetensors file with the tensors that the manifest lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from app.errors import ModelDamaged
from app.store.manifest import FileEntry, Manifest
from app.store.names import MANIFEST, WEIGHTS
from app.store.roots import Root
from app.store.tensors import (
    CHUNK,
    HeaderFault,
    ReadRange,
    first_not_finite,
    read_tensors,
    signatures,
)

Kind = Literal["missing", "truncated", "altered", "not safetensors", "wrongly shaped", "not finite"]
TENSORS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one file; `where` is its whole path."""

    file: str
    where: str
    kind: Kind
    expected: str
    found: str

    def __str__(self) -> str:
        return f"`{self.where}` is {self.kind}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Report:
    """What an inspection of a version saw. `extras` are files that the manifest does not know."""

    label: str
    where: str
    findings: tuple[Finding, ...]
    extras: tuple[str, ...]
    files: int
    size_bytes: int

    @property
    def sound(self) -> bool:
        """Whether the version may be served. Files too many do no harm."""
        return not self.findings

    def require_sound(self) -> None:
        """Raises ModelDamaged that names every file at fault and what was expected of it."""
        require_none(self.label, self.findings)


def inspect(root: Root, manifest: Manifest, folder: Iterable[str], *, finite: bool) -> Report:
    """Look at every file of `manifest` in `folder` of `root`; `finite` also at every number."""
    path = tuple(folder)
    present = {name: entry for name, entry in root.entries(*path).items() if not entry.folder}
    findings: list[Finding] = []
    for name, expected in manifest.files.items():
        where = root.where(*path, name)
        try:
            size = present[name].size
            read = range_reader(root, *path, name)
            damage = check_bytes(name, where, expected, size=size, read=read)
            if name == WEIGHTS:
                findings += check_weights(
                    where, manifest, size=size, read=read, finite=finite, damage=damage
                )
            elif damage:
                findings.append(damage)
        except (KeyError, FileNotFoundError):  # not listed, or gone since it was
            findings.append(missing(name, where, expected))
    return Report(
        label=manifest.label,
        where=root.where(*path),
        findings=tuple(findings),
        extras=tuple(sorted(extras(present, manifest))),
        files=len(manifest.files),
        size_bytes=sum(entry.size for entry in manifest.files.values()),
    )


def require_none(label: str, findings: Iterable[Finding]) -> None:
    """Raises ModelDamaged that tells all `findings` of the model `label`, if there are any."""
    told = "; ".join(str(one) for one in findings)
    if told:
        raise ModelDamaged(f"model `{label}` is damaged: {told}")


def extras(present: Iterable[str], manifest: Manifest) -> set[str]:
    """The names that a version's folder holds and its manifest does not say."""
    return set(present) - set(manifest.files) - {MANIFEST}


def range_reader(root: Root, *path: str) -> ReadRange:
    """`read(start, end)` of one file."""
    return lambda start, end: root.read(*path, start=start, end=end)


def missing(name: str, where: str, expected: FileEntry) -> Finding:
    """The finding for a file that is not there."""
    wanted = f"a file of {expected.size} bytes with sha256 {expected.sha256}"
    return Finding(name, where, "missing", wanted, "nothing")


def wrong_size(name: str, where: str, expected: FileEntry, size: int) -> Finding | None:
    """A file that is shorter is truncated, one that is longer altered."""
    if size == expected.size:
        return None
    kind: Kind = "truncated" if size < expected.size else "altered"
    return Finding(name, where, kind, f"{expected.size} bytes", f"{size} bytes")


def check_bytes(
    name: str, where: str, expected: FileEntry, *, size: int, read: ReadRange
) -> Finding | None:
    """Size first, which costs nothing, then the sha256."""
    damage = wrong_size(name, where, expected, size)
    if damage:
        return damage
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK):
        digest.update(read(start, min(start + CHUNK, size)))
    return wrong_digest(name, where, expected, digest.hexdigest())


def wrong_digest(name: str, where: str, expected: FileEntry, sha256: str) -> Finding | None:
    """A file of the right size with other bytes."""
    if sha256 == expected.sha256:
        return None
    return Finding(name, where, "altered", f"sha256 {expected.sha256}", f"sha256 {sha256}")


def check_weights(
    where: str,
    manifest: Manifest,
    *,
    size: int,
    read: ReadRange,
    finite: bool,
    damage: Finding | None = None,
) -> list[Finding]:
    """What the header says against what the manifest lists, after `damage` of the bytes.

    Damaged bytes are looked into as well: weights of another net are told by their tensors sooner
    than by their sha256. Only where the file is cut short is the header's complaint no news.
    """
    found = [damage] if damage else []
    try:
        tensors = read_tensors(read, size)
    except HeaderFault as fault:
        if not (damage and damage.kind == "truncated"):
            found.append(Finding(WEIGHTS, where, "not safetensors", fault.expected, fault.found))
        return found
    found += _wrong_shapes(where, manifest.tensors.shapes, signatures(tensors))
    if finite and not found:
        name = first_not_finite(read, tensors)
        if name is not None:
            found.append(
                Finding(
                    WEIGHTS,
                    where,
                    "not finite",
                    "only finite numbers",
                    f"NaN or infinity in tensor `{name}`",
                )
            )
    return found


def _wrong_shapes(
    where: str, expected: Mapping[str, str], found: Mapping[str, str]
) -> list[Finding]:
    wrong = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    findings = [
        Finding(
            WEIGHTS,
            where,
            "wrongly shaped",
            f"tensor `{name}` {expected[name]}" if name in expected else f"no tensor `{name}`",
            found.get(name, "no such tensor"),
        )
        for name in wrong[:TENSORS_SHOWN]
    ]
    if len(wrong) > TENSORS_SHOWN:
        rest = len(wrong) - TENSORS_SHOWN
        findings.append(
            Finding(
                WEIGHTS,
                where,
                "wrongly shaped",
                f"{len(expected)} tensors as the manifest lists them",
                f"{rest} more that differ",
            )
        )
    return findings
