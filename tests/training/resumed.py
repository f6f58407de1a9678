"""Run the tiny plan in a process of its own: `python -m tests.training.resumed FOLDER OUT STEP`.

Right after STEP was learnt it kills itself, as no handler can catch; never, if that never comes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from app.training.journal import Journal, Row
from app.training.material import Material
from app.training.ranks import join_ranks
from app.training.run import Run
from tests.training.runs import tiny


class Killer:
    """Told of every step, since the tiny plan reports each."""

    def __init__(self, step: int) -> None:
        self.step = step

    def told(self, row: Row) -> None:
        if row["step"] == self.step and "past" not in row:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        pass


def main(folder: str, out: str, step: int) -> None:
    torch.set_num_threads(1)
    plan = tiny(Path(folder), out=out)
    ranks = join_ranks(plan.batch)
    # What several processes agree on, and what they do not.
    assert ranks.same(True)
    assert ranks.same(False)
    assert ranks.same(ranks.first) == (ranks.count == 1)
    run = Run(
        plan,
        Material.of(plan),
        ranks,
        resume=True,
        journal=lambda path, at: Journal(path, [Killer(step)]),
    )
    run.go()
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
