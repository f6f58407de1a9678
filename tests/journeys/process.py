"""A real `ternaus serve` process on loopback, serving the shipped model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent.parent
STORE = ROOT / "model_store"
START_S = 240.0


class Process:
    """The server process, its log as it grows, and its address once it listens."""

    def __init__(self, *arguments: str, module: str = "app", **environment: str) -> None:
        self.log: list[str] = []
        self._listening = threading.Event()
        self.url = ""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**clean, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.log.append(line)
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.url = found[1].replace("0.0.0.0", "127.0.0.1")
                self._listening.set()
        self._listening.set()

    @property
    def text(self) -> str:
        return "".join(self.log)

    def wait_ready(self) -> float:
        """Seconds from the start of waiting until `/health/ready` said yes."""
        begun = time.monotonic()
        assert self._listening.wait(START_S)
        assert self.url, self.text
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            while client.get("/health/ready").status_code != 200:
                assert self.popen.poll() is None, self.text
                assert time.monotonic() - begun < START_S, self.text
                time.sleep(0.02)
        return time.monotonic() - begun

    def wait_exit(self, timeout_s: float = START_S) -> int:
        code = self.popen.wait(timeout_s)
        self._reader.join(10)
        return code

    def close(self) -> None:
        """After its end: read what is left of the log."""
        assert self.popen.stdout is not None
        self._reader.join(10)
        self.popen.stdout.close()

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Process]:
    """`ternaus serve` on a free port of loopback, killed at the end if it still runs."""
    process = Process("serve", "--host", "127.0.0.1", "--port", "0", *arguments, **environment)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(30)
        process.close()
