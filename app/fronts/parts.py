"""What a process is started with. Everything here travels to a spawned process as an argument."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.fronts.memory import Memory
from app.serving.rules import Rules
from app.settings import Settings

if TYPE_CHECKING:
    # The supervisor knows these types and need not load what they stand for.
    from app.serving.catalog import OpenEngine, Resolve
    from app.serving.changes import Newest

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Opening:
    """Which models, where they are, and how one is placed on the device. Made in the engine
    process.
    """

    labels: Callable[[], tuple[str, ...]]
    resolve: Resolve
    open_engine: OpenEngine
    newest: Newest | None = None


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The engine process. `opening` makes its Opening; `measure`: whether to time a picture;
    `served`: what its predecessor said of what it served last, as values of `Served`.
    """

    rules: Rules
    opening: Callable[[], Opening]
    log: Callable[[], None]
    board: Memory
    channel: socket.socket
    measure: bool
    parent: int
    served: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FrontPlan:
    """A front end: its seat, its listening socket, and how many seats there may be at all.

    `joins`: the engine process has its models open, so this front end need not answer before it
    knows them.
    """

    settings: Settings
    host_threads: int
    log: Callable[[], None]
    board: Memory
    channel: socket.socket
    listening: socket.socket
    seat: int
    seats: int
    parent: int
    joins: bool = False


def tie_to(parent: int) -> None:
    """End this process when its parent does, however that ends (Linux, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# Each process loads its own wing; the supervisor loads neither.


def run_engine(plan: EnginePlan) -> None:
    """The engine process, until its end."""
    from app.fronts import engine

    engine.run(plan)


def run_front(plan: FrontPlan) -> None:
    """A front end, until its end."""
    from app.fronts import front

    front.run(plan)
