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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_S = 240.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Every process of a server bears it in its environment, also one that left its parents.
_MARK = "BENCHMARKED_SERVER"


class LoggedProcess:
    """A server process, its log as it grows, and its address (`url`) once it says so there.

    `environment` is added to ours, less what would set a server of ours up.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, url: str = ""
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
        self.log: list[str] = []
        self.url = url
        self._listening = threading.Event()
        if url:
            self._listening.set()
        self.popen = subprocess.Popen(
            command,
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
            found = re.search(r"(?:listening|running) on (http://[\w.:]+)", line)
            if found and not self.url:
                self.url = found[1].replace("0.0.0.0", "127.0.0.1")
                self._listening.set()
        self._listening.set()

    @property
    def text(self) -> str:
        """All that it said."""
        return "".join(self.log)

    def wait_ready(self, path: str = "/health/ready") -> float:
        """Until it answers 200 there: how many seconds that took. Raises RuntimeError with its log
        where it never does.
        """
        begun = time.monotonic()
        if not self._listening.wait(START_S) or not self.url:
            raise RuntimeError(self.text)
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            while not _answers(client, path):
                if self.popen.poll() is not None or time.monotonic() - begun > START_S:
                    raise RuntimeError(self.text)
                time.sleep(0.02)
        return time.monotonic() - begun

    def close(self) -> None:
        """After its end: read what is left of the log."""
        self._reader.join(10)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class ServerProcess(LoggedProcess):
    """A server on a free port of loopback, on the processor cores `cores` (none: all).

    `python` is another interpreter than this one. `url` is for a server that was told where to
    listen and does not say so in its log.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cores: Sequence[int] = (),
        python: str | Path = sys.executable,
        url: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        quiet = {"TERNAUS_HOST": "127.0.0.1", "TERNAUS_PORT": "0", "TERNAUS_DRAIN_GRACE_S": "0"}
        super().__init__(
            [*pinned, str(python), "-m", *arguments],
            {**quiet, **(environment or {}), _MARK: self._mark},
            url=url,
        )

    def processes(self) -> list[int]:
        """Every process of it that lives, whoever its parent is by now."""
        return sorted({*_family(self.popen.pid), *_marked(self._mark)})

    def cpu_s(self, *pids: int) -> float:
        """Processor seconds so far, of all its processes or of these, and of those they have waited
        for.
        """
        return sum(_cpu_s(pid) for pid in pids or self.processes())

    def numbers(self) -> dict[str, int]:
        """The processes of a server of several, by what it calls them in its log."""
        told = re.findall(r"([\w-]+) is process (\d+)", self.text)
        return {name: int(pid) for name, pid in told}

    def peak_bytes(self) -> int:
        """The most memory that it held at once (VmHWM), summed over its processes."""
        return sum(_memory_bytes(pid, "status", "VmHWM") for pid in self.processes())

    def peak_shared_once_bytes(self) -> int:
        """The same, less what processes share and VmHWM counts for each of them.

        How much that is, is looked at now (RSS less PSS). Looking while a load runs would cost it:
        the kernel walks every page and keeps the process from mapping memory meanwhile.
        """
        total = self.peak_bytes()
        for pid in self.processes():
            rss = _memory_bytes(pid, "smaps_rollup", "Rss")
            total -= rss - _memory_bytes(pid, "smaps_rollup", "Pss")
        return total

    def end(self, *, grace_s: float = 30.0) -> None:
        """SIGTERM, and whatever of it is left after that is killed."""
        family = {pid: _begun(pid) for pid in self.processes()}
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(grace_s)
        while True:
            family.update({pid: _begun(pid) for pid in self.processes() if pid not in family})
            # A number may be somebody else's by now.
            left = [pid for pid, begun in family.items() if begun and _begun(pid) == begun]
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.popen.poll()
            time.sleep(0.02)
        self.popen.wait(30)
        self.close()


class Elsewhere:
    """Cores that neither the server nor this process used while the block ran: a figure beside
    which others worked is none.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.cores = 0.0
        self._server = server

    def _theirs_s(self) -> float:
        return _machine_cpu_s() - self._server.cpu_s() - time.process_time()

    def __enter__(self) -> Elsewhere:
        self._begun, self._before = time.perf_counter(), self._theirs_s()
        return self

    def __exit__(self, *exc: object) -> None:
        spent = time.perf_counter() - self._begun
        self.cores = round((self._theirs_s() - self._before) / spent, 3)


def _machine_cpu_s() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    # user, nice, system; then idle and waiting; then interrupts, and what a host took away.
    return sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8)) / _TICKS_PER_S


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def _stat(pid: int) -> list[str]:
    """What follows the name, which stands in parentheses and may hold spaces; empty: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    # utime, stime and those of children that were waited for.
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / _TICKS_PER_S


def _begun(pid: int) -> str:
    """When that process began, in ticks since the machine did; empty: it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""


def _memory_bytes(pid: int, file: str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        # Processes come and go while one looks.
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _marked(mark: str) -> list[int]:
    """Every process that was started with that mark."""
    sought, found = f"{_MARK}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if sought in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def serving(
    *arguments: str,
    cores: Sequence[int] = (),
    ready: str = "/health/ready",
    python: str | Path = sys.executable,
    url: str = "",
    **environment: str,
) -> Iterator[ServerProcess]:
    """`python -m ARGUMENTS` until the block ends; it is ready when the block begins."""
    process = ServerProcess(arguments, cores=cores, python=python, url=url, environment=environment)
    try:
        process.wait_ready(ready)
        yield process
    finally:
        process.end()
