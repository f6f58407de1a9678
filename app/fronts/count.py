"""How many front ends: from what was measured, and from the cores there are."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from app.engine.cores import quota_cores
from app.engine.drivers import driver_present
from app.errors import SettingsError
from app.fronts.board import SEATS
from app.settings import Settings

# Of a front end whose number was found: it stands for about one core's work.
THREADS = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """Pictures a second of the device alone, and processor seconds of the host for one."""

    rate: float
    host_s: float


def cores() -> int:
    """Cores that this container may keep busy."""
    return quota_cores() or len(os.sched_getaffinity(0))


def one_process(settings: Settings) -> bool:
    """Whether a single process is as good as it gets, known before anything is measured.

    So it is where the net runs on all the cores: a front end could only take them from it. And
    where there are but two. Where models are to be changed while they serve it must be one: they
    are changed where they are open. Raises SettingsError where several are asked for.
    """
    changing = bool(settings.admin_keys()) or settings.watch_store_s > 0
    if changing and settings.frontends > 1:
        raise SettingsError(
            f"`TERNAUS_FRONTENDS` is {settings.frontends}, and models are changed while they serve "
            "(TERNAUS_ADMIN_KEY, TERNAUS_WATCH_STORE_S) in one process only\n"
            "hint: leave one of the two out",
            limit="TERNAUS_FRONTENDS",
        )
    if settings.frontends or changing:
        return settings.frontends == 1 or changing
    if cores() <= 2:
        return True
    on_cpu = settings.device == "cpu" or (
        settings.device == "auto" and (settings.backend == "openvino" or not driver_present())
    )
    return on_cpu and not 0 < settings.engine_threads < cores()


def front_ends(pace: Pace, available: int) -> int:
    """Front ends for a device of this pace: each is worth a core, and the engine keeps one."""
    return max(1, min(math.ceil(pace.rate * pace.host_s), available - 1, SEATS))
