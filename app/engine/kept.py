"""Folders in the cache, each made once, kept under a name that says what it rests on, and sealed.

Layout of a cache: `<cache_dir>/<name>/{files, seal.json}`; the seal holds the sha256 of each file.
A folder whose seal does not fit is thrown away and made anew, so a damaged cache costs time and
never a wrong mask.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.engine.findings import KEY_LENGTH, recall, remember
from app.errors import EngineError

SEAL = "seal.json"
# Far longer than anything takes to be made.
PATIENCE_S = 1800.0
# An older draft was left by processes that were killed.
STALE_S = 2 * PATIENCE_S


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, as `make` left it in the empty folder that it is given; called now if it is missing
    or damaged.

    Raises what `make` raises, then nothing is left behind; EngineError where it cannot be written.
    """
    if not whole(folder):
        cache_dir = folder.parent
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _sweep(cache_dir)
            draft = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".draft-"))
        except OSError as exc:
            raise EngineError(f"`cache_dir` cannot be written: {exc}") from exc
        try:
            make(draft)
            remember(draft / SEAL, {path.name: _digest(path) for path in draft.iterdir()})
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def used(folder: Path, *, most: int) -> None:
    """It is needed now. Of its kind (its name but for the key) those that were needed last stay,
    `most` of them: a server that is given new versions for months must not fill its disk.

    Whoever has the files of another open keeps them until they are closed.
    """
    kind = folder.name.rpartition("-")[0]
    alike = folder.parent.glob(f"{kind}-{'[0-9a-f]' * KEY_LENGTH}")
    try:
        os.utime(folder)
        # A link is one to an image's own: it costs nothing.
        last = sorted((p.stat().st_mtime, p) for p in alike if not p.is_symlink())
    except OSError:
        return  # another process tidies up, or the cache is not ours
    for _, path in last[:-most]:
        shutil.rmtree(path, ignore_errors=True)


def whole(folder: Path) -> bool:
    """Whether it is there as it was made."""
    seal = recall(folder / SEAL) or {}
    try:
        return bool(seal) and all(_digest(folder / name) == seal[name] for name in seal)
    except OSError:
        return False


def _sweep(cache_dir: Path) -> None:
    """Remove drafts of processes that were killed before they could do so."""
    for path in cache_dir.glob(".draft-*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # another process was first, or it is not ours


def _publish(draft: Path, folder: Path) -> None:
    """Move a finished folder into place; if another process was first, its folder stays."""
    for _ in range(2):
        try:
            os.rename(draft, folder)
        except OSError:
            if whole(folder):
                return
            # A damaged folder stands in the way. Whoever has it open keeps its files until closed.
            if folder.is_symlink():
                folder.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return
    raise EngineError(f"`cache_dir` cannot be written: `{folder}` stays in the way")
