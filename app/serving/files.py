"""Pictures on disk, segmented on the server's own path, with a progress bar."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.encodings import base as encodings
from app.errors import PictureError, TernausError
from app.serving.catalog import OpenEngine, Resolve
from app.serving.desk import at_once, segment_bytes
from app.serving.house import House, Rules
from app.serving.segmenter import Ask

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo"}


def find(pictures: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each picture with the place of its mask below the output folder (without suffix).

    A file stands for itself; a folder for every picture below it. Raises PictureError for a path
    that is not there, and for two pictures whose masks would overwrite each other.
    """
    seen: dict[Path, Path] = {}
    for path in pictures:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            places = [(p, p.relative_to(path)) for p in found]
        elif path.exists():
            places = [(path, Path(path.name))]
        else:
            raise PictureError(f"there is no `{path}`")
        for picture, place in places:
            clash = seen.setdefault(place.with_suffix(""), picture)
            if clash != picture:
                raise PictureError(f"`{clash}` and `{picture}` would give the same mask file")
            yield picture, place.with_suffix("")


def segment_files(
    pictures: list[Path],
    out: Path,
    *,
    format: str,
    threshold: float | None,
    label: str | None,
    labels: tuple[str, ...],
    rules: Rules,
    resolve: Resolve,
    open_engine: OpenEngine,
) -> int:
    """Write a mask for every picture below `out`; give the number of pictures that failed."""
    encoding = encodings.get(format)
    work = list(find(pictures))

    async def run() -> int:
        house = House.local(rules, resolve=resolve, open_engine=open_engine)
        try:
            await house.open(labels)
            return await _all(house)
        finally:
            await house.close()

    async def _all(house: House) -> int:
        failed = 0
        room = asyncio.Semaphore(at_once())
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("segmenting", total=len(work))

            async def one(picture: Path, place: Path) -> None:
                nonlocal failed
                async with room:
                    try:
                        data = await asyncio.to_thread(picture.read_bytes)
                        answer = await segment_bytes(house, data, Ask(label, format, threshold))
                        target = out / place.parent / f"{place.name}.{encoding.extension}"
                        await asyncio.to_thread(_write, target, answer.body)
                    except (TernausError, OSError) as exc:
                        failed += 1
                        progress.console.print(f"{picture}: {exc}", markup=False, highlight=False)
                    progress.advance(bar)

            await asyncio.gather(*(one(picture, place) for picture, place in work))
        sys.stdout.write(f"{len(work) - failed} masks in {out}, {failed} failed\n")
        return failed

    return asyncio.run(run())


def _write(target: Path, body: bytes) -> None:
    """Whole or not at all: a run that is killed leaves no half masks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(body)
    os.replace(partial, target)
