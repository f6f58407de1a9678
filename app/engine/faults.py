"""What an exception of a device means: no memory, beyond help, or this batch alone.

The one wall between the libraries' exceptions and ours. A sticky CUDA error (illegal address,
device-side assert) makes every later call fail too, so the device itself is asked: `alive` touches
it once, and only where the error names the device at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.errors import DeviceOutOfMemory, EngineLost, InferenceFailed

NO_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|bad_alloc|allocate memory|not enough memory", re.IGNORECASE
)
DEVICE = re.compile(r"CUDA|cuDNN|CUBLAS|NVRTC|NCCL|AcceleratorError|driver", re.IGNORECASE)


def verdict(error: BaseException, *, alive: Callable[[], bool], doing: str) -> InferenceFailed:
    """The error of ours that `error` is; the caller raises it from `error`. Never raises.

    `doing` completes the sentence, for example `infer of 4 x 256 x 256`. `alive` answers False
    where the device no longer does.
    """
    words = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    # By message, for failed allocations of cuDNN and cuBLAS come as plain RuntimeError.
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return DeviceOutOfMemory(f"no memory for {doing} ({words})")
    if (DEVICE.search(words) or DEVICE.search(str(error))) and not alive():
        return EngineLost(f"the device no longer answers after {doing} ({words})")
    return InferenceFailed(f"{doing} failed ({words})")
