"""A real `ternaus serve` process on loopback, serving the shipped model."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from benchmarks.processes import ROOT, START_S, LoggedProcess

STORE = ROOT / "model_store"
# A busy machine is slow, not wrong: journeys do not ask how long something takes.
PATIENCE = {"TERNAUS_REQUEST_TIMEOUT_S": "250"}


class Process(LoggedProcess):
    """A command of ours, or another module, as a process."""

    def __init__(self, *arguments: str, module: str = "app", **environment: str) -> None:
        super().__init__([sys.executable, "-m", module, *arguments], environment)

    def wait_exit(self, timeout_s: float = START_S) -> int:
        code = self.popen.wait(timeout_s)
        self._reader.join(10)
        return code

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Process]:
    """`ternaus serve` on a free port of loopback, killed at the end if it still runs."""
    process = Process(
        "serve", "--host", "127.0.0.1", "--port", "0", *arguments, **{**PATIENCE, **environment}
    )
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(30)
        process.close()
