"""A server of several processes with a fake engine: `python -m tests.fronts.serve FOLDER SETTINGS`.

`SETTINGS` is JSON. Files in FOLDER give orders to the engine: while `hang` is there it hangs inside
a batch, `lose` makes it say that its device is lost, `die` ends its process, `refuse` keeps its
models from being opened; while `hold` is there they wait before they are opened, and `kill-LABEL`
ends the process that opens it. What happened is told in files too: `entered`, `opening`, `looked`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

from app.errors import EngineError, EngineLost
from app.fronts.parts import Opening
from app.fronts.supervisor import supervise
from app.settings import Settings
from app.store.store import Edition
from app.types import ModelSpec, Pixels
from tests.shelf import PublicShelf


def obey(folder: Path, pixels: Pixels) -> None:
    """Do what the files say; each is an order once, but `hang`, which is one while it is there."""
    if pixels.shape[1:3] == (64, 96):
        return  # the sample
    (folder / "entered").touch()
    while (folder / "hang").exists():
        time.sleep(0.005)
    for order in ("lose", "die"):
        if (folder / order).exists():
            (folder / order).unlink()
            if order == "lose":
                raise EngineLost("the device fell off the bus")
            os._exit(9)


def opening(folder: Path) -> Opening:
    """Called in the engine process."""
    shelf = PublicShelf(folder / "store")
    if not shelf.names():
        shelf.publish("fake", 1)

    def at_opening(spec: ModelSpec) -> None:
        (folder / "opening").touch()
        while (folder / "hold").exists():
            time.sleep(0.005)
        if (folder / f"kill-{spec.label}").exists():
            os._exit(9)
        if (folder / "refuse").exists():
            raise EngineError("this device takes no models")

    def newest(name: str) -> Edition:
        (folder / "looked").touch()
        return shelf.newest(name)

    shelf.opening = at_opening
    shelf.before = partial(obey, folder)
    return Opening(
        labels=shelf.names,
        resolve=shelf.resolve,
        open_engine=shelf.open_engine,
        newest=newest,
    )


def log() -> None:
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(process)d %(name)s: %(message)s")


def main() -> int:
    folder = Path(sys.argv[1])
    log()
    settings = Settings.read(**{"host": "127.0.0.1", "port": 0, **json.loads(sys.argv[2])})
    return supervise(settings, opening=partial(opening, folder), log_to=log)


if __name__ == "__main__":
    sys.exit(main())
