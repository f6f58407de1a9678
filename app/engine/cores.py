"""How many processor cores this process may keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(limit: Path = CGROUP_LIMIT) -> int:
    """Cores by affinity, or fewer where the container's quota says so.

    A container of 4 cores on a machine of 64 sees all 64; as many threads would spend most of each
    period stopped. `limit` holds `quota period` in microseconds, or `max period`
    (Linux, cgroup v2, `cpu.max`).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)
