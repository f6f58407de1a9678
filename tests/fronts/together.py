"""A server of several processes on loopback, and what one can do to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.journeys.process import Process
from tests.shelf import PublicShelf

# Of a test with what must come about, however busy the machine is.
PATIENCE = 240.0
KEY = "sesame"
ADMIN = {"authorization": f"Bearer {KEY}"}


class Together(Process):
    """`tests.fronts.serve` as a process, with its children."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.shelf = PublicShelf(folder / "store")
        self.fronts = settings.get("frontends", 2)
        super().__init__(
            str(folder),
            # No request runs out of time because a test or the machine is slow.
            json.dumps({"frontends": 2, "drain_grace_s": 0, "request_timeout_s": 900, **settings}),
            module="tests.fronts.serve",
        )

    def client(self, **options: Any) -> httpx.Client:
        """One connection, so one front end."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def get(self, path: str) -> httpx.Response:
        """On a connection of its own: any front end."""
        with self.client() as client:
            return client.get(path)

    def post(self, data: bytes, **headers: str) -> httpx.Response:
        with self.client() as client:
            return client.post("/segment", content=data, headers=headers)

    def children(self) -> dict[str, int]:
        """Process numbers by name: `engine`, `front-0`, ..."""
        found = {}
        for line in self.log:
            name, _, number = line.partition(" is process ")
            if number:
                found[name.rsplit(" ", 1)[-1]] = int(number.split()[0])
        return found

    def front(self, name: str, **options: Any) -> httpx.Client:
        """A connection to this front end; the kernel chooses, so many are tried."""
        pid = self.children()[name]
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            client = self.client(**options)
            try:
                if client.get("/health").json()["process"] == pid:
                    return client
            except BaseException:
                client.close()
                raise
            client.close()
        raise AssertionError(f"no connection reached {name}")

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[httpx.Client]:
        """A connection to this front end, for a while."""
        client = self.front(name)
        try:
            yield client
        finally:
            client.close()

    def all_ready(self) -> bool:
        """Every front end says that it is, not only one."""
        ready = True
        for seat in range(self.fronts):
            with self.at(f"front-{seat}") as client:
                ready = ready and client.get("/health/ready").status_code == 200
        return ready

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a child; its process number."""
        pid = self.children()[name]
        os.kill(pid, number)
        return pid

    def change(self, path: str, **options: Any) -> httpx.Response:
        """Ask for a change, on any front end."""
        with self.client() as client:
            return client.post(f"/models/{path}", headers=ADMIN, **options)

    def everywhere(self, look: Callable[[httpx.Client], Any]) -> list[Any]:
        """What each front end says."""
        found = []
        for seat in range(self.fronts):
            with self.at(f"front-{seat}") as client:
                found.append(look(client))
        return found

    def open_everywhere(self) -> list[list[str]]:
        """What each front end says is open, `name@version`."""
        return self.everywhere(
            lambda client: [
                f"{m['name']}@{m['version']}" for m in client.get("/models").json()["models"]
            ]
        )

    def order(self, what: str) -> None:
        (self.folder / what).touch()

    def recall(self, what: str) -> None:
        (self.folder / what).unlink(missing_ok=True)

    def entered(self) -> None:
        """Wait until the engine is inside a batch; forget it."""
        self.told("entered")

    def told(self, what: str) -> None:
        """Wait until the engine says so; forget it."""
        until(lambda: (self.folder / what).exists())
        self.recall(what)

    def figures(self) -> dict[str, float]:
        found: dict[str, float] = self.get("/health").json()["figures"]
        return found


def until(true: Callable[[], object]) -> None:
    """Wait for what another process does; fails when it does not."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def together(folder: Path, *, ready: bool = True, **settings: Any) -> Iterator[Together]:
    """Serving until the block ends; then nothing of it is left."""
    process = Together(folder, **settings)
    try:
        if ready:
            process.wait_ready()
            until(process.all_ready)
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(30)
        for name, pid in process.children().items():
            until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
            assert name
        process.close()
