"""How many processor cores this process may keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def quota_cores(limit: Path = CGROUP_LIMIT) -> int | None:
    """Cores of the container's quota, or None where it does not bind.

    A container of 4 cores on a machine of 64 sees all 64, and so do the libraries; as many threads
    would spend most of each period stopped. `limit` holds `quota period` in microseconds, or
    `max period` (Linux, cgroup v2, `cpu.max`).
    """
    known = hasattr(os, "sched_getaffinity")
    seen = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    try:
        quota, period = limit.read_text().split()
        cores = max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
    return cores if cores < seen else None
