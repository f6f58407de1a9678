"""One server process of a fleet: the real application and server, a fake engine behind them.

    python -m tests.fleet.replica FOLDER PORT SECONDS_A_BATCH

Everything else is read from `TERNAUS_*`, as in production. It starts with version 1 of the model
`fake`; version 2 appears in its store thereafter.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from app.api.app import create_app
from app.api.server import listen
from app.settings import Settings
from app.types import ModelSpec
from tests.shelf import Shelf


def main(folder: str, port: str, seconds: str) -> int:
    shelf = Shelf(Path(folder))
    shelf.publish("fake", 1)

    def opening(spec: ModelSpec) -> None:
        if spec.version == 1:
            shelf.publish("fake", 2)

    shelf.opening = opening
    shelf.before = lambda pixels: time.sleep(float(seconds))
    settings = Settings.read(host="127.0.0.1", port=int(port), host_threads=1)
    logging.basicConfig(level="INFO", stream=sys.stderr)
    app = create_app(
        settings,
        labels=lambda: ("fake",),
        resolve=shelf.resolve,
        newest=shelf.newest,
        open_engine=shelf.open_engine,
        on_failure=lambda exc: server.fail(exc),
    )
    server = listen(
        app,
        host=settings.host,
        port=settings.port,
        grace_s=settings.drain_grace_s,
        log_level="warning",
    )
    server.run()
    return 1 if server.failure is not None or not server.started else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
