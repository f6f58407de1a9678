"""A run on the terminal: step and epoch, loss, IoU, pictures a second, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.training.journal import Row


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
