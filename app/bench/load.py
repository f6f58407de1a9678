"""Load on a server: closed loop (so many clients, each waits for its answer) and open loop
(requests come when they come, whether or not the server keeps up).

    load = Load(target, requests)
    runs = drive(lambda: load.closed(clients=8, seconds=10))
    runs = drive(lambda: load.opened(rate=200, seconds=10))

In the open loop the moments are drawn beforehand (Poisson) and latency counts from them, so that a
server that falls behind cannot slow down its own exam.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from app.bench.connections import Connection
from app.bench.messages import Target
from app.bench.shots import Kind, Run, Shot

Result = TypeVar("Result")

# How often requests that nobody waits for any longer are looked for, in seconds.
_SWEEP_S = 0.1
# Nearer than this a moment has come: the event loop's timers are no finer.
_TICK_S = 0.0005


def drive(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run on an event loop of its own, the fast one where there is one."""
    factory = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work())


@dataclass(slots=True)
class Load:
    """Sends `requests` (whole requests as bytes), by turns.

    `damaged` and `leavers` are the shares of requests that carry a picture cut off half-way, and
    that leave before their answer; they are counted apart. `patience_s`: after so long without an
    answer a request counts as lost. `most_connections` bounds the open loop; requests beyond it
    wait in the client, and their waiting counts. A leaver leaves after `leave_s` seconds, having
    sent one of the shares `leave_at` of its request.
    """

    target: Target
    requests: Sequence[bytes]
    patience_s: float = 60.0
    damaged: Sequence[bytes] = ()
    damaged_share: float = 0.0
    leaver_share: float = 0.0
    most_connections: int = 2048
    seed: int = 0
    leave_s: float = 0.005  # long enough to be decoded or queued
    leave_at: Sequence[float] = (0.5, 1.0)
    _idle: list[Connection] = field(default_factory=list)
    _opening: int = 0
    _busy: dict[Shot, Connection] = field(default_factory=dict)
    _waiting: deque[tuple[Shot, bytes]] = field(default_factory=deque)
    _ended: Callable[[Shot], None] = lambda shot: None
    _random: random.Random = field(default_factory=random.Random)
    _turn: int = 0

    async def closed(
        self, *, clients: int, seconds: float, warm_s: float = 0.0, to_the_end: bool = False
    ) -> Run:
        """`clients` at once, each sending its next request when its answer has come.

        Counted is what ended in the `seconds` after `warm_s`; `to_the_end`: what was on its way
        then is counted too, and the run is as long as the last answer took. Where few answers
        come, and many at once, a fixed stretch would count a batch too many or too few.
        """
        self._random = random.Random(self.seed)
        shots: list[Shot] = []
        begun = time.perf_counter() + warm_s
        until = begun + seconds
        finished = asyncio.Event()
        running = clients

        def again(shot: Shot) -> None:
            nonlocal running
            if begun <= shot.ended and (to_the_end or shot.ended <= until):
                shots.append(shot)
            if time.perf_counter() < until:
                self._next(time.perf_counter())
            else:
                running -= 1
                if running == 0:
                    finished.set()

        cpu = time.process_time()
        self._ended = again
        async with self._swept():
            await self._prepare(clients)
            for _ in range(clients):
                self._next(time.perf_counter())
            await finished.wait()
        if to_the_end and shots:
            seconds = max(shot.ended for shot in shots) - begun
        return Run(tuple(shots), begun, seconds, time.process_time() - cpu, self._turn)

    async def opened(self, *, rate: float, seconds: float, warm_s: float = 0.0) -> Run:
        """`rate` requests a second on average, at random moments drawn beforehand."""
        self._random = random.Random(self.seed)
        moments, at = [], 0.0
        while (at := at + self._random.expovariate(rate)) < warm_s + seconds:
            moments.append(at)
        ready = min(self.most_connections, max(8, round(rate / 4)))
        return await self._timed([(at, None) for at in moments], seconds, warm_s, ready)

    async def volley(self, moments: Sequence[tuple[float, Kind]]) -> Run:
        """Just these requests, each of its kind at its moment, in seconds from the start."""
        self._random = random.Random(self.seed)
        ordered = sorted(moments, key=lambda moment: moment[0])
        run = await self._timed(ordered, 0.0, 0.0, len(ordered))
        return replace(run, seconds=max(shot.ended for shot in run.shots) - run.begun)

    async def _timed(
        self,
        moments: Sequence[tuple[float, Kind | None]],
        seconds: float,
        warm_s: float,
        ready: int,
    ) -> Run:
        """Requests at moments in ascending order; None: of a kind by the shares."""
        shots: list[Shot] = []
        finished = asyncio.Event()
        left = len(moments)

        def done(shot: Shot) -> None:
            nonlocal left
            if shot.due >= begun:
                shots.append(shot)
            left -= 1
            if left == 0:
                finished.set()

        self._ended = done
        async with self._swept():
            await self._prepare(ready)
            start = time.perf_counter()
            begun = start + warm_s
            cpu = time.process_time()
            due = deque((start + at, kind) for at, kind in moments)
            while due:
                now = time.perf_counter()
                while due and due[0][0] <= now + _TICK_S:
                    self._next(*due.popleft())
                if due:
                    await asyncio.sleep(max(0.0, due[0][0] - time.perf_counter()))
            if left:
                await finished.wait()
        return Run(tuple(shots), begun, seconds, time.process_time() - cpu, self._turn)

    # How a request gets onto a connection.

    def _next(self, due: float, kind: Kind | None = None) -> None:
        """Send the next request, or let it wait for a connection."""
        kind = kind or self._kind()
        shot = Shot(due, kind)
        bodies = self.damaged if kind == "damaged" else self.requests
        request = bodies[self._turn % len(bodies)]
        self._turn += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                self._send(connection, shot, request)
                return
        self._waiting.append((shot, request))
        if len(self._busy) + self._opening < self.most_connections:
            self._open()

    def _kind(self) -> Kind:
        if not (self.damaged_share or self.leaver_share):
            return "picture"
        drawn = self._random.random()
        if drawn < self.damaged_share:
            return "damaged"
        return "leaver" if drawn < self.damaged_share + self.leaver_share else "picture"

    def _send(self, connection: Connection, shot: Shot, request: bytes) -> None:
        self._busy[shot] = connection
        if shot.kind == "leaver":
            cut = round(len(request) * self._random.choice(self.leave_at))
            connection.send(shot, request[:cut], last=True)
            asyncio.get_running_loop().call_later(self.leave_s, connection.leave)
        else:
            connection.send(shot, request)

    def _open(self) -> None:
        self._opening += 1
        task = asyncio.ensure_future(self._connect())
        task.add_done_callback(self._opened)

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(ended=self._end, idle=self._free),
            self.target.host,
            self.target.port,
            ssl=ssl.create_default_context() if self.target.secure else None,
        )
        return connection

    def _opened(self, task: asyncio.Future[Connection]) -> None:
        self._opening -= 1
        if task.cancelled():
            return
        if task.exception() is None:
            self._free(task.result())
        elif self._waiting:
            shot, _ = self._waiting.popleft()
            shot.sent = shot.ended = time.perf_counter()
            self._ended(shot)

    def _free(self, connection: Connection) -> None:
        if self._waiting and connection.open:
            self._send(connection, *self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _end(self, shot: Shot) -> None:
        self._busy.pop(shot, None)
        self._ended(shot)
        # A connection that ended with its request leaves those that wait without one.
        if self._waiting and not self._idle and self._opening < len(self._waiting):
            self._open()

    async def _prepare(self, count: int) -> None:
        """Open connections before the clock runs. Raises OSError where nobody listens."""
        self._turn = 0
        self._idle = [await self._connect() for _ in range(count)]

    @contextlib.asynccontextmanager
    async def _swept(self) -> AsyncIterator[None]:
        """Impatience now and then while a load runs; afterwards every connection is closed."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_S)
                before = time.perf_counter() - self.patience_s
                for shot, connection in list(self._busy.items()):
                    if shot.sent < before:
                        connection.leave()

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            for connection in [*self._idle, *self._busy.values()]:
                connection.leave()
            self._idle, self._busy = [], {}
            self._waiting.clear()
