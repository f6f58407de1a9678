"""How many front ends: from what was measured, and from the cores there are."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from app.engine.cores import quota_cores
from app.engine.drivers import driver_present
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
    where there are but two.
    """
    if settings.frontends:
        return settings.frontends == 1
    if cores() <= 2:
        return True
    on_cpu = settings.device == "cpu" or (
        settings.device == "auto" and (settings.backend == "openvino" or not driver_present())
    )
    return on_cpu and not 0 < settings.engine_threads < cores()


def front_ends(pace: Pace, available: int) -> int:
    """Front ends for a device of this pace: each is worth a core, and the engine keeps one."""
    return max(1, min(math.ceil(pace.rate * pace.host_s), available - 1, SEATS))
