"""The listening process: uvicorn with an end that loses nothing.

SIGTERM: not ready at once, new requests are still served for the grace time (balancers need it to
notice), then refused; what is inside is finished; exit 0. SIGINT skips the grace. A second signal
ends it at once. A model that cannot be opened, or a lost engine, ends the process with 1, so that
whoever watches it starts a new one.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from app.api.connections import Line
from app.serving.house import House

log = logging.getLogger("ternaus.server")

# Files that are open besides connections: models, libraries, logs.
_OTHER_FILES = 256


class Server(uvicorn.Server):
    """One process, one application, one house."""

    def __init__(
        self, config: uvicorn.Config, *, grace_s: float, on_listening: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._grace = grace_s
        self._on_listening = on_listening
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self.failure: BaseException | None = None

    @property
    def _house(self) -> House:
        house = self.config.app.state.house  # type: ignore[union-attr]
        assert isinstance(house, House)
        return house

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            for server in self.servers:
                for listening in server.sockets:
                    host, port, *_ = listening.getsockname()
                    self._on_listening(f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now. Not passed on, so that the exit code is ours."""
        self._signals += 1
        if self._signals > 1:
            self.force_exit = self.should_exit = True
        elif self._loop is None:
            self.should_exit = True
        else:
            grace = 0.0 if sig == signal.SIGINT else self._grace
            self._loop.call_soon_threadsafe(self.drain, grace)

    def drain(self, grace_s: float) -> None:
        """Begin to end, as SIGTERM does. On the event loop; once is enough."""
        if self._drain is not None:
            return
        log.info("shutting down: not ready; serving for another %g s, then finishing", grace_s)
        self._house.drain()
        self._drain = asyncio.ensure_future(self._finish(grace_s))

    async def _finish(self, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        self._house.refuse()
        await self._house.admission.emptied()
        self.should_exit = True

    def fail(self, exc: BaseException) -> None:
        """End with exit code 1. From any thread."""
        if self.failure is None:
            self.failure = exc
        if self._loop is not None:
            self._loop.call_soon_threadsafe(setattr, self, "should_exit", True)


def say_listening(address: str) -> None:
    """For people, and for whoever reads the log to find the port."""
    log.info("listening on %s (documentation at /docs)", address)


def listen(
    app: Any,
    *,
    host: str,
    port: int,
    grace_s: float,
    log_level: str,
    line: Line | None = None,
    on_listening: Callable[[str], None] = say_listening,
) -> Server:
    """A server for `app`, not yet running. `line` says what connections may do."""
    line = line or Line()
    _make_room(line.max_connections)
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=line,  # type: ignore[arg-type]  # makes a protocol, as its class would
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            # What uvicorn says of its life we say better: listening, ready, draining.
            log_level="warning" if log_level == "info" else log_level,
            server_header=False,
            # Longer than the idle time of common balancers, so that they close first and never
            # send a request into a connection that we are closing.
            timeout_keep_alive=75,
            backlog=2048,
        ),
        grace_s=grace_s,
        on_listening=on_listening,
    )


def _make_room(connections: int) -> None:
    """File descriptors for so many connections, and for refusing as many again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
