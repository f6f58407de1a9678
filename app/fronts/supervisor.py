"""The parent: starts the engine process and the front ends, and starts again what ends.

It holds what must outlive them: the listening sockets, the board, the rules for giving up, what the
engine serves. It serves nothing, opens no model and imports no engine library. A dead front end
costs its own requests; connections that wait for it are served by its successor. A dead engine
costs what it had in hand; the front ends answer 503 until its successor has opened what was served
last. A model that cannot be opened at the first start, or a process that keeps ending, ends
everything with 1.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any

from app.fronts import wire
from app.fronts.board import SEATS, Board
from app.fronts.count import THREADS, Pace, cores, front_ends
from app.fronts.parts import EnginePlan, FrontPlan, Opening, run_engine, run_front
from app.fronts.patience import Patience
from app.serving.ledger import Ledger
from app.serving.rules import rules_of
from app.settings import Settings

log = logging.getLogger("ternaus.supervisor")

# How long a process may take to end once it was told to, and in a hurry.
_LAST_S = 10.0
_HURRY_S = 0.5
_TICK_S = 0.25


def supervise(
    settings: Settings, *, opening: Callable[[], Opening], log_to: Callable[[], None]
) -> int:
    """Serve with several processes until a signal or a failure; the exit code.

    `opening` and `log_to` are called in the processes, so they must be importable by name (or
    partials of such).
    """
    try:
        listening = _Listening(settings.host, settings.port)
    except OSError as exc:
        log.critical("cannot listen on %s port %d: %s", settings.host, settings.port, exc)
        return 1
    with contextlib.closing(listening):
        return _Supervisor(settings, opening, log_to, listening).run()


class _Listening:
    """One listening socket for each front end, all on one port.

    The kernel spreads connections evenly over them, which it does not over one shared socket: who
    wakes first would take a whole burst. They belong to the supervisor, so what waits in the socket
    of a front end that died is there for its successor.
    """

    def __init__(self, host: str, port: int) -> None:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._address: Any = address
        self._kind = (family, kind, proto)
        self._sockets: dict[int, socket.socket] = {}
        # With SO_REUSEPORT alone a second server on the same port would share it in silence.
        with socket.socket(*self._kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(self._address)
        self._address = self.seat(0).getsockname()

    def seat(self, seat: int) -> socket.socket:
        """The socket of this front end, the same for its successors."""
        found = self._sockets.get(seat)
        if found is None:
            found = socket.socket(*self._kind)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found.bind(self._address)
            found.listen(2048)
            self._sockets[seat] = found
        return found

    @property
    def url(self) -> str:
        host, port, *_ = self._address
        return f"http://{host}:{port}"

    def leave(self, seat: int) -> None:
        """No front end will sit there again: the kernel sends new connections to the others."""
        found = self._sockets.pop(seat, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        for seat in list(self._sockets):
            self.leave(seat)


@dataclass(slots=True)
class _Child:
    """A process, alive or to be started. `seat` None: the engine."""

    seat: int | None
    patience: Patience
    process: SpawnProcess | None = None
    channel: socket.socket | None = None
    start_at: float | None = None
    ready: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return "engine" if self.seat is None else f"front-{self.seat}"


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        opening: Callable[[], Opening],
        log_to: Callable[[], None],
        listening: _Listening,
    ) -> None:
        self._settings, self._opening, self._log_to = settings, opening, log_to
        self._listening = listening
        self._spawn = multiprocessing.get_context("spawn")
        self._board = Board.new()
        self._selector = selectors.DefaultSelector()
        self._engine = _Child(None, Patience(deaths=5, window_s=600.0))
        self._fronts: dict[int, _Child] = {}
        self._wanted = settings.frontends
        # What the engine serves, for its successor: its own words, not looked into.
        self._served: dict[str, Any] | None = None
        self._cores = cores()
        self._opened = False
        self._said = False
        self._draining = False
        self._signals: list[int] = []
        self._seen_signals = 0
        self._stalled_since: float | None = None
        self._code: int | None = None
        self._close_by = math.inf
        self._hurry = False

    def run(self) -> int:
        """Until everything has ended; the exit code."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(4096))
        before = {
            number: signal.signal(number, lambda sig, _: self._signals.append(sig))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        old_fd = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        try:
            self._start(self._engine)
            # Probes are answered from the beginning, whatever the number will be.
            for seat in range(self._wanted or 1):
                self._add_front(seat)
            while self._code is None:
                for key, _ in self._selector.select(_TICK_S):
                    key.data()
                self._hear_signals()
                self._tick()
            return self._code
        finally:
            self._kill_all()
            signal.set_wakeup_fd(old_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            wake.close()
            woken.close()

    # Starting.

    def _add_front(self, seat: int) -> None:
        child = self._fronts[seat] = _Child(seat, Patience(deaths=5, window_s=60.0))
        self._start(child)

    def _start(self, child: _Child) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        target, plan = self._plan(child.seat, theirs)
        child.process = self._spawn.Process(
            target=target, args=(plan,), name=f"ternaus-{child.name}"
        )
        child.process.start()
        theirs.close()
        ours.setblocking(False)
        child.channel, child.start_at, child.ready = ours, None, False
        self._selector.register(
            child.process.sentinel, selectors.EVENT_READ, lambda: self._ended(child)
        )
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child))
        log.info("%s is process %d", child.name, child.process.pid)
        if child.seat is None:
            for front in self._fronts.values():
                self._join(front)
            if self._draining:
                self._say(child, "drain")
        else:
            self._join(child)

    def _plan(self, seat: int | None, channel: socket.socket) -> tuple[Callable[..., None], Any]:
        settings, parent = self._settings, os.getpid()
        if seat is None:
            return run_engine, EnginePlan(
                rules=rules_of(settings),
                opening=self._opening,
                log=self._log_to,
                board=self._board.memory,
                channel=channel,
                measure=self._wanted == 0,
                parent=parent,
                served=self._served,
            )
        count = self._wanted
        threads = max(THREADS, -(-self._cores // count)) if count else THREADS
        return run_front, FrontPlan(
            settings=settings,
            host_threads=settings.host_threads or threads,
            log=self._log_to,
            board=self._board.memory,
            channel=channel,
            listening=self._listening.seat(seat),
            seat=seat,
            seats=count or min(self._cores, SEATS),
            parent=parent,
            joins=self._engine.ready,
        )

    def _join(self, front: _Child) -> None:
        """A line between this front end and the engine, if both are there."""
        if front.channel is None or self._engine.channel is None:
            return
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one, other:
            self._say(self._engine, "front", other, seat=front.seat)
            self._say(front, "engine", one)

    def _say(self, child: _Child, kind: str, *lines: socket.socket, **values: Any) -> None:
        """A message; a child that is gone or hangs is found out by other means."""
        if child.channel is not None:
            with contextlib.suppress(OSError):
                packet = wire.message(kind, **values)
                socket.send_fds(child.channel, [packet], [line.fileno() for line in lines])

    # Listening to them.

    def _hear(self, child: _Child) -> bool:
        """Take one message; False where there is none."""
        if child.channel is None:
            return False
        try:
            packet = child.channel.recv(wire.MOST)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._selector.unregister(child.channel)
            child.channel.close()
            child.channel = None
            return False
        found = wire.read(memoryview(packet))
        assert isinstance(found, dict)
        match found["kind"]:
            case "listening":
                child.ready = True
                if not self._said:
                    self._said = True
                    log.info("listening on %s (documentation at /docs)", self._listening.url)
            case "opened":
                child.ready = True
                self._engine_opened(Pace(found["rate"], found["host_s"]))
            case "served":
                self._served = found["served"]
            case "failed":
                # The engine has said why. What was never ready once is not tried again.
                if not self._opened:
                    self._end(1)
        return True

    def _engine_opened(self, pace: Pace) -> None:
        first, self._opened = not self._opened, True
        if not first or self._wanted:
            return
        count = front_ends(pace, self._cores)
        log.info(
            "%d front ends: the device takes %.0f pictures a second, the host %.1f ms of a core "
            "for each, of %d cores (TERNAUS_FRONTENDS)",
            count,
            pace.rate,
            1000 * pace.host_s,
            self._cores,
        )
        for seat in range(1, count):
            if not self._draining:
                self._add_front(seat)

    def _ended(self, child: _Child) -> None:
        """A process is gone: clear up after it, and start another unless we are ending."""
        process = child.process
        assert process is not None
        process.join()
        self._selector.unregister(process.sentinel)
        # Its last words count: what it served is what its successor opens.
        while self._hear(child):
            pass
        if child.channel is not None:
            self._selector.unregister(child.channel)
            child.channel.close()
        child.process, child.channel, child.ready = None, None, False
        code = process.exitcode
        process.close()
        Ledger(self._board.ledger(child.seat)).forget_gauges()
        if child.seat is not None:
            self._board.leave(child.seat)
            if self._draining:
                self._front_drained(child.seat)
                return
        elif self._draining and not self._fronts:
            self._end(0)
            return
        if self._code is not None:
            return
        delay = child.patience.died(time.monotonic())
        if delay is None:
            log.critical("%s keeps ending (now with code %s): giving up", child.name, code)
            self._end(1)
            return
        log.error("%s ended with code %s; starting it again in %g s", child.name, code, delay)
        child.start_at = time.monotonic() + delay

    def _tick(self) -> None:
        now = time.monotonic()
        for child in (self._engine, *self._fronts.values()):
            if child.start_at is not None and now >= child.start_at and self._code is None:
                self._start(child)
        self._watch_engine(now)
        if now >= self._close_by:
            self._end(0)

    def _watch_engine(self, now: float) -> None:
        """An engine that stands still is told of by `/health/live` at once. Where nobody acts on
        that, it is ended after as long again.
        """
        limit = self._settings.stall_after_s
        numbers = self._board.engine
        stalled = self._engine.ready and (
            numbers.state == "stalled" or now - numbers.get("heartbeat") > limit
        )
        if not stalled:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
            log.critical("the engine makes no progress (TERNAUS_STALL_AFTER_S)")
        elif now - self._stalled_since > limit and self._engine.process is not None:
            self._stalled_since = None
            log.critical("the engine still makes no progress; ending it")
            self._engine.process.kill()

    # Ending.

    def _hear_signals(self) -> None:
        for number in self._signals[self._seen_signals :]:
            self._seen_signals += 1
            if self._seen_signals > 1:
                self._hurry = True
                self._end(0)
                return
            self._drain(0.0 if number == signal.SIGINT else self._settings.drain_grace_s)

    def _drain(self, grace_s: float) -> None:
        log.info("shutting down: not ready; serving for another %g s, then finishing", grace_s)
        self._draining = True
        self._say(self._engine, "drain")
        for seat, front in list(self._fronts.items()):
            self._say(front, "drain", grace_s=grace_s)
            if front.process is None:
                self._front_drained(seat)

    def _front_drained(self, seat: int) -> None:
        """One front end has finished; with the last one the engine may go."""
        self._listening.leave(seat)
        self._fronts.pop(seat, None)
        if self._fronts:
            return
        if self._engine.process is None:
            self._end(0)
        else:
            self._say(self._engine, "close")
            self._close_by = time.monotonic() + _LAST_S

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code

    def _kill_all(self) -> None:
        """Whoever still runs is told to end, then made to."""
        children = [*self._fronts.values(), self._engine]
        for front in self._fronts.values():
            self._say(front, "end" if self._hurry else "stop")
        self._say(self._engine, "close")
        until = time.monotonic() + (_HURRY_S if self._hurry else _LAST_S)
        for child in children:
            if child.process is not None:
                child.process.join(max(0.0, until - time.monotonic()))
                if child.process.is_alive():
                    child.process.kill()
                    child.process.join()
            if child.channel is not None:
                child.channel.close()
