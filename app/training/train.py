"""`ternaus train`: look at the data, run the plan, publish the best weights.

    train(plan, resume=False)                                  # the path of the best weights
    train_and_publish(plan, store=store, about=About("roofs"))  # the label in the store

Under `torchrun` every process calls this; the first one speaks, writes and publishes.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from app.engine.choose import EngineOptions
from app.errors import TrainingError
from app.store.names import NAME_RULE, is_name
from app.store.store import ModelStore
from app.training.charts import HINT, Board, Curves, missing
from app.training.finishing import About, finish
from app.training.journal import Journal, Listener
from app.training.material import Material
from app.training.plan import Plan
from app.training.precision import computes_bfloat16
from app.training.progress import Bar, Tick, counted
from app.training.ranks import Ranks, join_ranks
from app.training.run import Run, require_place

__all__ = ["About", "Plan", "train", "train_and_publish"]

_CHARTS = {"tensorboard": "TensorBoard logs", "matplotlib": "curves"}


def train(plan: Plan, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run the plan to its end; the path of the best weights.

    Raises TrainingError for bad data (all of it named at once), for options that cannot be, and for
    an `out` folder that already holds a run when not resuming.
    """
    ranks = _begin(plan, resume=resume)
    console = console or _console(ranks)
    try:
        best, _ = _run(plan, ranks, resume=resume, console=console)
    finally:
        ranks.close()
    console.print(f"best weights: {best}", highlight=False, markup=False)
    return best


def train_and_publish(
    plan: Plan,
    *,
    store: ModelStore,
    about: About,
    resume: bool = False,
    options: EngineOptions | None = None,
    console: Console | None = None,
) -> str | None:
    """Run the plan and publish its best weights; the label, None but in the first process.

    `options` say where the final scores are computed. Raises as `train`, and the store's errors.
    """
    if not is_name(about.name):
        raise TrainingError(f"a model cannot be named `{about.name}`: {NAME_RULE}")
    ranks = _begin(plan, resume=resume)
    console = console or _console(ranks)
    try:
        _, material = _run(plan, ranks, resume=resume, console=console)
    finally:
        ranks.close()
    if not ranks.first:
        return None
    return finish(
        plan,
        material,
        store=store,
        about=about,
        options=options or EngineOptions(precision="float32", batch_sizes=(1,)),
        console=console,
    )


def _begin(plan: Plan, *, resume: bool) -> Ranks:
    """What can be refused without a look at the data."""
    plan.check()
    require_place(plan, resume=resume)
    ranks = join_ranks(plan.batch)
    if not ranks.same(plan.half):
        ranks.close()
        raise TrainingError(
            "some of the machines compute in bfloat16 and some do not\n"
            "hint: give all of them `--float32`, or `--half`"
        )
    return ranks


def _console(ranks: Ranks) -> Console:
    """Messages go to standard error, from the first process alone."""
    return Console(stderr=True, quiet=not ranks.first)


def _run(plan: Plan, ranks: Ranks, *, resume: bool, console: Console) -> tuple[Path, Material]:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    with counted("looking at the data", console) as tick:
        material = Material.of(plan, say=say, tick=tick)
    ranks.wait()
    if plan.charts and ranks.first and missing():
        wanting = " and ".join(f"no {_CHARTS[name]}" for name in missing())
        say(f"{wanting}: {', '.join(missing())} not installed\n{HINT}")

    bars: list[Bar] = []

    def journal(path: Path, step: int) -> Journal:
        if not ranks.first:
            return Journal(path)
        bars.append(Bar(plan.steps, epoch_steps=material.epoch_steps(plan), console=console))
        return Journal(path, [*bars, *_charts(plan, step)])

    def scoring(total: int) -> Tick:
        return bars[0].scoring(total) if bars else lambda: None

    say(_place(plan, ranks))
    run = Run(plan, material, ranks, resume=resume, journal=journal, say=say, scoring=scoring)
    try:
        return run.go(), material
    finally:
        run.journal.close()


def _place(plan: Plan, ranks: Ranks) -> str:
    """Where and in what the run computes, and what is wrong with that."""
    processes = f"{ranks.count} processes on " if ranks.count > 1 else ""
    words = f"training: {processes}{ranks.device.type}, {'bfloat16' if plan.half else 'float32'}"
    if plan.half and not computes_bfloat16(ranks.device):
        words += "; bfloat16 is emulated here, many times slower than `--float32`"
    return words


def _charts(plan: Plan, step: int) -> list[Listener]:
    """Those whose libraries are here."""
    if not plan.charts:
        return []
    absent = missing()
    found: list[Listener] = []
    out = Path(plan.out)
    if "tensorboard" not in absent:
        found.append(Board(out / "tensorboard", purge_step=step + 1 if step else None))
    if "matplotlib" not in absent:
        found.append(Curves(out / "curves.png"))
    return found
