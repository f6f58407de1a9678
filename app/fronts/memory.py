"""Memory that several processes map: an anonymous file, which a container's /dev/shm cannot limit.

Nothing lies in a file system, so nothing is left behind: the memory goes with the last process that
has it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any


class Memory:
    """Zeros at first; `view` is the same bytes in every process that has it.

    Passes to a spawned process as an argument, and to a running one as `fd` over a Unix socket.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Takes `fd` over. Raises OSError where it is smaller than `size`."""
        self.fd = fd
        self.size = size
        if os.fstat(fd).st_size < size:
            raise OSError(f"shared memory of {os.fstat(fd).st_size} bytes, {size} expected")
        self._map = mmap.mmap(fd, size)
        self.view = memoryview(self._map)

    @classmethod
    def new(cls, name: str, size: int) -> Memory:
        """`name` shows in /proc, for people."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        # Nobody may shrink it: a read behind the end would be a signal, not an error.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return cls(fd, size)

    def forget_fd(self) -> None:
        """The mapping is enough; the descriptor is closed. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (DupFd(self.fd), self.size)


def _arrive(fd: Any, size: int) -> Memory:
    return Memory(fd.detach(), size)
