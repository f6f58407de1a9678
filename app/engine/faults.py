"""What an exception of a device means: no memory, beyond help, or this batch alone.

The one wall between the libraries' exceptions and ours. A sticky CUDA error (illegal address,
device-side assert) makes every later call fail too, so the device itself is asked: `alive` touches
it once, and only where the error names the device at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from app.errors import DeviceOutOfMemory, EngineLost, InferenceFailed

NO_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|bad_alloc|allocate memory|not enough memory", re.IGNORECASE
)
# What torch says of a convolution for which every way that cuDNN knows has failed, whatever of:
# mostly its memory to work in did not fit (https://github.com/pytorch/pytorch/issues/108645).
NO_WAY = re.compile(r"unable to find an engine", re.IGNORECASE)
DEVICE = re.compile(r"CUDA|cuDNN|CUBLAS|NVRTC|NCCL|AcceleratorError|driver", re.IGNORECASE)


def verdict(error: BaseException, *, alive: Callable[[], bool], doing: str) -> InferenceFailed:
    """The error of ours that `error` is; the caller raises it from `error`. Never raises.

    `doing` completes the sentence, for example `infer of 4 x 256 x 256`. `alive` answers False
    where the device no longer does.
    """
    words = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    # By message, for failed allocations of cuDNN and cuBLAS come as plain RuntimeError; and what
    # fails in a capture comes as the failure of the capture.
    if any(isinstance(one, MemoryError) or NO_MEMORY.search(str(one)) for one in chain_of(error)):
        return DeviceOutOfMemory(f"no memory for {doing} ({words})")
    no_way = NO_WAY.search(str(error))
    if (no_way or DEVICE.search(words) or DEVICE.search(str(error))) and not alive():
        return EngineLost(f"the device no longer answers after {doing} ({words})")
    if no_way:
        return DeviceOutOfMemory(f"no memory for {doing}, or no way to compute it ({words})")
    return InferenceFailed(f"{doing} failed ({words})")


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from or came while."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
