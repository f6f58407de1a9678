"""What the C library does with memory that was given back: pictures come and go by the megabyte."""

from __future__ import annotations

import ctypes
import functools

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Decoded, a picture of five megapixels; what is larger has memory of its own, which goes back.
_LARGE = 16 * 2**20
# Some ten of one megapixel.
_KEPT = 32 * 2**20


@functools.cache
def keep_freed() -> bool:
    """Have this process keep up to 32 MiB of freed memory for each group of threads that share a
    heap (mallopt(3)), for the next picture; once. False where the C library is not glibc.

    Left alone, glibc gives the end of a heap back as soon as a few pictures are done, and the next
    one has the kernel clear its pages again: an eighth of what the host pays for a picture of
    1024 x 1024.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Either alone would end glibc's own adjustment of the other.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
