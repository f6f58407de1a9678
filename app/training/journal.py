"""What a run says of itself: one line of JSON for each report, and listeners that show it.

Listeners (progress on the terminal, TensorBoard, curves) are told each row; none of them can change
the run. On resuming, rows of steps that will be done again are dropped first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class Listener(Protocol):
    """Is told of a run as it goes."""

    def told(self, row: Row) -> None:
        """One report: `step`, and what was measured at it."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class Journal:
    """`log.jsonl` of a run."""

    def __init__(self, path: Path, listeners: Iterable[Listener] = ()) -> None:
        self.path = path
        self.listeners = list(listeners)

    def rewind(self, step: int) -> None:
        """Drop what a killed run wrote after the step that it is resumed at."""
        rows = [row for row in rows_of(self.path) if row["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(partial, self.path)
        for row in rows:
            for listener in self.listeners:
                listener.told({**row, "past": True})

    def note(self, step: int, **values: Any) -> None:
        """Write one row and tell the listeners."""
        row = {"step": step, **values}
        with self.path.open("a") as log:
            log.write(json.dumps(row) + "\n")
        for listener in self.listeners:
            listener.told(row)

    def close(self) -> None:
        """Tell the listeners, once."""
        while self.listeners:
            self.listeners.pop().close()


def rows_of(path: Path) -> list[Row]:
    """The whole rows of a log; a kill may have cut the last one short."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
