"""Server processes under measurement: started, waited for, their processor time and memory read."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_S = 240.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """A server on a free port of loopback, on the processor cores `cores` (none: all)."""

    def __init__(
        self, arguments: Sequence[str], *, cores: Sequence[int] = (), **environment: str
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        self.log: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self.popen = subprocess.Popen(
            [*pinned, sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={
                **clean,
                "PYTHONUNBUFFERED": "1",
                "TERNAUS_HOST": "127.0.0.1",
                "TERNAUS_PORT": "0",
                "TERNAUS_DRAIN_GRACE_S": "0",
                **environment,
            },
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
            found = re.search(r"(?:listening|running) on (http://[\w.:]+)", line)
            if found:
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def wait_ready(self, path: str = "/health/ready") -> None:
        """Until it answers 200 there. Raises RuntimeError with its log where it never does."""
        if not self._listening.wait(START_S) or not self.url:
            raise RuntimeError("".join(self.log))
        until = time.monotonic() + START_S
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            while client.get(path).status_code != 200:
                if self.popen.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("".join(self.log))
                time.sleep(0.02)

    def cpu_s(self) -> float:
        """Processor seconds so far, of all its processes that live."""
        return sum(_cpu_s(pid) for pid in _family(self.popen.pid))

    def peak_bytes(self) -> int:
        """The most memory that it held at once (VmHWM), summed over its processes."""
        return sum(_status_bytes(pid, "VmHWM") for pid in _family(self.popen.pid))

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(30)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(30)
        self._reader.join(10)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def _cpu_s(pid: int) -> float:
    # The name in parentheses may hold spaces; utime and stime are the 12th and 13th after it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def serving(
    *arguments: str, cores: Sequence[int] = (), ready: str = "/health/ready", **environment: str
) -> Iterator[ServerProcess]:
    """`python -m ARGUMENTS` until the block ends; it is ready when the block begins."""
    process = ServerProcess(arguments, cores=cores, **environment)
    try:
        process.wait_ready(ready)
        yield process
    finally:
        process.end()
