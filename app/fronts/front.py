"""A front end: HTTP, decoding, encoding and admission in one of several processes.

It imports no engine library: it starts in about a second and stays small.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import sys
from typing import Any

from app.api.app import build_app, line_of, rules_of
from app.api.server import Server, listen
from app.fronts.board import SEATS, Board, SharedDoors
from app.fronts.link import Link
from app.fronts.parts import FrontPlan, tie_to
from app.fronts.remote import RemoteDevice
from app.serving.clock import RealClock
from app.serving.house import House
from app.serving.ledger import Ledger
from app.serving.metrics import Metrics
from app.serving.series import Book

log = logging.getLogger("ternaus.front")

# Longest wait of a front end that joins others for the models, before it answers anything: it is
# over within milliseconds, unless the engine process ends or hangs meanwhile.
_JOIN_S = 10.0


def run(plan: FrontPlan) -> None:
    """Serve until told to drain, or until the supervisor is gone."""
    tie_to(plan.parent)
    plan.log()
    sys.exit(_Front(plan).run())


class _Front:
    """One front end and its line to the supervisor."""

    def __init__(self, plan: FrontPlan) -> None:
        self._plan = plan
        settings = plan.settings
        board = Board(plan.board)
        rules = dataclasses.replace(rules_of(settings), host_threads=plan.host_threads)
        clock = RealClock()
        self._device = RemoteDevice(
            board,
            plan.seat,
            clock=clock,
            default_model=rules.default_model,
            stall_after_s=rules.stall_after_s,
            slot_bytes=settings.slot_bytes,
        )
        others = [None, *(seat for seat in range(plan.seats) if seat != plan.seat)]
        book = Book(
            Ledger(board.ledger(plan.seat)), [Ledger(board.ledger(seat)) for seat in others]
        )
        house = House(
            rules,
            self._device,
            metrics=Metrics(book),
            clock=clock,
            doors=SharedDoors(board, plan.seat, min(plan.seats, SEATS)),
        )

        async def opening() -> None:
            self._channel = Link(plan.channel, on_message=self._told, on_closed=self._orphaned)
            if plan.joins:
                log.info("waiting for the engine process to say what is open")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_JOIN_S if plan.joins else None):
                    await house.open(())

        line = line_of(settings, house.metrics)
        # Each takes its part of what one process would take.
        line = dataclasses.replace(line, max_connections=max(1, line.max_connections // plan.seats))
        self._server: Server = listen(
            # Connections that waited for the place of a dead front end are not to be refused.
            build_app(settings, house, opening=opening, wait=plan.joins),
            host=settings.host,
            port=settings.port,
            grace_s=settings.drain_grace_s,
            log_level=settings.log_level,
            line=line,
            on_listening=self._listening,
        )

    def run(self) -> int:
        """The exit code."""
        self._server.run(sockets=[self._plan.listening])
        return 0 if self._server.started else 1

    def _listening(self, address: str) -> None:
        asyncio.get_running_loop().call_soon(self._say_listening)

    def _say_listening(self) -> None:
        self._channel.say("listening")

    def _told(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["kind"]:
            case "engine":
                self._device.attach(socket.socket(fileno=fds[0]))
            case "drain":
                self._server.drain(message["grace_s"])
            case "stop":
                self._server.should_exit = True
            case "end":
                _end(0)
            case other:
                raise ValueError(f"a message `{other}`")

    def _orphaned(self) -> None:
        """The supervisor is gone, and with it whoever would start us again."""
        _end(1)


def _end(code: int) -> None:
    """At once, whatever is going on."""
    logging.shutdown()
    os._exit(code)
