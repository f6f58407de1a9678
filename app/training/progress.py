"""A run on the terminal: step and epoch, loss, IoU, pictures a second, time left; pictures counted.

Where no terminal is, there are plain lines, and never a long silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.training.journal import Row

# Called once for each picture that is done.
Tick = Callable[[], None]

# Without a terminal, a line this often says how far it is.
_EVERY_S = 60.0


@contextmanager
def counted(words: str, console: Console, total: int | None = None) -> Iterator[Tick]:
    """Count pictures on a console that shows nothing else meanwhile."""
    if console.is_terminal and not console.quiet:
        with console.status(words) as status:
            yield _count(words, total, status.update)
    else:
        yield _lines(words, total, console)


def _lines(words: str, total: int | None, console: Console) -> Tick:
    def show(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    return _count(words, total, show, every_s=_EVERY_S)


def _count(
    words: str, total: int | None, show: Callable[[str], None], *, every_s: float = 0.0
) -> Tick:
    """The last picture is not told: what comes after it says that it is done."""
    done, due = 0, time.monotonic() + every_s
    of = f" of {total}" if total is not None else ""

    def tick() -> None:
        nonlocal done, due
        done += 1
        if time.monotonic() >= due and done != total:
            due = time.monotonic() + every_s
            show(f"{words}: {done}{of} pictures")

    return tick


class Bar:
    """A line that keeps itself up to date; plain lines where no terminal is."""

    def __init__(self, steps: int, *, epoch_steps: float, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.steps, self.epoch_steps = steps, epoch_steps
        self._last: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, words="")
        self._progress.start()

    def told(self, row: Row) -> None:
        self._last.update(row)
        self._progress.update(self._task, completed=row["step"], words=self.words(self._last))
        if not self.console.is_terminal and "past" not in row:
            self.console.print(
                f"step {row['step']}/{self.steps} {self.words(row)}", highlight=False
            )

    def scoring(self, total: int) -> Tick:
        """So many pictures are about to be scored."""

        if not self.console.is_terminal:
            return _lines("scoring", total, self.console)
        return _count("scoring", total, lambda text: self._progress.update(self._task, words=text))

    def close(self) -> None:
        self._progress.stop()

    def words(self, row: Row) -> str:
        """What there is to say, shortest first."""
        parts = [f"epoch {row['step'] / self.epoch_steps:.2f}"]
        if "loss" in row:
            parts.append(f"loss {row['loss']:.3f}")
        if row.get("iou") is not None:
            parts.append(f"IoU {row['iou']:.4f}")
        if "pictures_per_second" in row:
            parts.append(f"{row['pictures_per_second']:.1f} pictures/s")
        if "minutes_left" in row:
            parts.append(f"{row['minutes_left']:.1f} min left")
        return "  ".join(parts)
