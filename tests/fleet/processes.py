"""Replicas, the balancer and Prometheus as real processes on loopback, with the deployed files."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
START_S = 120.0


def needed(program: str) -> str:
    """The path of a program that a fleet needs; `make fleet` installs them."""
    found = shutil.which(program) or shutil.which(str(Path(sys.executable).parent / program))
    assert found, f"`{program}` is needed; `make fleet` installs it"
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(true: Callable[[], bool], what: str, timeout_s: float = START_S) -> float:
    """Wait until `true()`; the seconds it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begun


def answers(url: str) -> bool:
    """Whether it answers 200 at once."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class Program:
    """A process whose output goes to a file, and which is gone when the test is."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TERNAUS_")}
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                arguments,
                cwd=ROOT,
                env={**clean, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout_s: float = START_S) -> int:
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(30)


class Replica:
    """A place for one server process, which may be started there again and again."""

    def __init__(
        self, name: str, folder: Path, port: int, *, batch_s: float, settings: dict[str, str]
    ) -> None:
        self.name, self.port = name, port
        self.url = f"http://127.0.0.1:{port}"
        self._folder, self._batch_s, self._settings = folder, batch_s, settings
        self.program = self._run()

    def _run(self) -> Program:
        place = str(self._folder / self.name)
        module = [sys.executable, "-m", "tests.fleet.replica"]
        return Program(
            [*module, place, str(self.port), str(self._batch_s)],
            self._folder / f"{self.name}.log",
            **self._settings,
        )

    def start(self) -> None:
        """Again, on the same port. Returns when it is ready."""
        self.program.end()
        self.program = self._run()
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.program.popen.poll() is None, self.program.text
            return answers(f"{self.url}/health/ready")

        until(ready, f"{self.name} is ready")

    def end(self) -> None:
        self.program.end()


class Balancer:
    """HAProxy with the deployed configuration in front of these replicas."""

    def __init__(
        self, folder: Path, replicas: list[Replica], *, reply_timeout: str = "40s"
    ) -> None:
        port, figures = free_ports(2)
        self.url, self.figures = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{figures}"
        lines = [f"    server {r.name} 127.0.0.1:{r.port}" for r in replicas]
        (folder / "replicas.cfg").write_text("\n".join(["backend ternaus", *lines, ""]))
        self._names = [replica.name for replica in replicas]
        self.program = Program(
            [needed("haproxy"), "-db", "-f", str(DOCKER / "haproxy" / "haproxy.cfg"),
             "-f", str(folder / "replicas.cfg")],
            folder / "haproxy.log",
            BIND=f"127.0.0.1:{port}",
            FIGURES_BIND=f"127.0.0.1:{figures}",
            REPLY_TIMEOUT=reply_timeout,
        )  # fmt: skip

    def rows(self) -> dict[str, dict[str, str]]:
        """HAProxy's own figures of each replica."""
        text = httpx.get(f"{self.figures}/;csv", timeout=5.0, trust_env=False).text
        found = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in found if row["pxname"] == "ternaus"}

    def up(self, name: str) -> bool:
        return self.rows()[name]["status"] == "UP"

    def wait_up(self, *names: str) -> None:
        def all_up() -> bool:
            assert self.program.popen.poll() is None, self.program.text
            try:
                return all(self.up(name) for name in names or self._names)
            except httpx.HTTPError:
                return False

        until(all_up, f"the balancer sees {names or self._names}")

    def wait_down(self, name: str) -> float:
        return until(lambda: not self.up(name), f"the balancer misses {name}")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas behind a balancer."""

    replicas: list[Replica]
    balancer: Balancer

    @property
    def url(self) -> str:
        return self.balancer.url


@contextlib.contextmanager
def fleet(
    folder: Path,
    count: int = 3,
    *,
    batch_s: float = 0.1,
    reply_timeout: str = "40s",
    **settings: str,
) -> Iterator[Fleet]:
    """`count` replicas behind the deployed balancer; every process has ended afterwards."""
    with contextlib.ExitStack() as stack:
        replicas: list[Replica] = []
        for index, port in enumerate(free_ports(count), 1):
            replica = Replica(f"replica{index}", folder, port, batch_s=batch_s, settings=settings)
            stack.callback(replica.end)
            replicas.append(replica)
        for replica in replicas:
            replica.wait_ready()
        balancer = Balancer(folder, replicas, reply_timeout=reply_timeout)
        stack.callback(balancer.program.end)
        balancer.wait_up()
        yield Fleet(replicas, balancer)
