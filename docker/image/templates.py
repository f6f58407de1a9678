"""Draw every net for OpenVINO, while an image is built: `templates.py FOLDER`.

The image that serves on the CPU has no torch. It fills these templates with the weights of whatever
model it is given, and finds each under the name that `app.engine.templates` computes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.architectures.base import registry
from app.engine.converter import draw
from app.engine.kept import kept
from app.engine.templates import template_name
from app.types import Task

# `multilabel` has the templates of `binary`.
TASKS: tuple[Task, ...] = ("binary", "multiclass")


def main(folder: str) -> int:
    """Draw them all; 0."""
    target = Path(folder)
    for name, architecture in registry().items():
        for parameters in architecture.variants():
            for task in TASKS:
                first, *others = (
                    target / template_name(name, spelling, task)
                    for spelling in architecture.spellings(parameters)
                )
                kept(first, lambda draft: draw(name, parameters, task, draft))  # noqa: B023
                for other in others:
                    other.symlink_to(first.name)
        print(f"{name}: {len(architecture.variants())} variants")
    # The server runs as another user than the build.
    for path in [target, *target.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
