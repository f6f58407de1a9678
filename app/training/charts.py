"""TensorBoard logs and a picture of the curves. Their libraries are the extra `train`: optional."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
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
    series = {
        name: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)]
        for name in _CURVES
    }
    there = {name: points for name, points in series.items() if points}
    if not there:
        return
    figure = _figure(8, 2.4 * len(there))
    panels = figure.subplots(len(there), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, points) in zip(panels, there.items(), strict=True):
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", color="C0")
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=120)


def draw_lines(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    path: Path,
    *,
    across: str,
    up: str,
) -> None:
    """Runs to compare, as (x, y) points; those of one name have one colour.

    Raises TrainingError where matplotlib is not installed.
    """
    figure = _figure(8, 4.5)
    panel = figure.subplots()
    for index, (name, runs) in enumerate(curves.items()):
        for count, run in enumerate(runs):
            label = None if count else name
            panel.plot(*zip(*run, strict=True), marker=".", color=f"C{index}", label=label)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> Any:
    """In inches. The object interface: pyplot would choose a backend and keep global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise TrainingError(f"matplotlib is not installed\n{HINT}") from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
