"""Whether a GPU may be here, asked without a library that could tell."""

from __future__ import annotations

import os
from pathlib import Path

# Where an NVIDIA driver shows itself: Linux, in containers, Windows' Linux, and Tegra boards.
DRIVER_TRACES = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia", "/dev/dxg", "/dev/nvgpu")


def driver_present(traces: tuple[str, ...] = DRIVER_TRACES) -> bool:
    """Whether an NVIDIA driver may be here. A cheap no spares the import of torch (2 s, 300 MB)."""
    return os.name == "nt" or any(Path(trace).exists() for trace in traces)
