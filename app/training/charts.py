"""TensorBoard logs and a picture of the curves. Their libraries are the extra `train`: optional."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.errors import TrainingError
from app.training.journal import Row

HINT = "hint: `pip install 'ternausnet-serve[train]'`"
_CURVES = ("loss", "rate", "iou", "dice")


def missing() -> list[str]:
    """The libraries of the extra that are not installed."""
    return [name for name in ("tensorboard", "matplotlib") if find_spec(name) is None]


class Board:
    """Scalars for TensorBoard in `folder`. Raises TrainingError where it is not installed."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise TrainingError(f"TensorBoard is not installed\n{HINT}") from exc
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def told(self, row: Row) -> None:
        if "past" in row:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class Curves:
    """`path`, a PNG of loss, rate and scores by step, drawn when the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def told(self, row: Row) -> None:
        self.rows.append(row)

    def close(self) -> None:
        # A chart that cannot be drawn must not cost a run that was trained.
        with contextlib.suppress(OSError):
            draw(self.rows, self.path)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Raises TrainingError where matplotlib is not installed."""
    try:
        # The object interface: pyplot would choose a backend and keep global state.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise TrainingError(f"matplotlib is not installed\n{HINT}") from exc
    series = {
        name: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)]
        for name in _CURVES
    }
    there = {name: points for name, points in series.items() if points}
    if not there:
        return
    figure = Figure(figsize=(8, 2.4 * len(there)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(there), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, points) in zip(panels, there.items(), strict=True):
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", color="C0")
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)
