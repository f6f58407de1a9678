"""Host threads: where pictures are decoded and masks encoded, beside the event loop.

    pool = HostPool(threads=2)
    picture = await pool.run(decode, data)
    pool.close()

The standard library's executor does the same with two futures for each job, one of threads and one
of the loop, and callbacks between them: on small pictures that was an eighth of all Python's work.
Here a thread hands the outcome straight to the loop's own future.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_Job = tuple[
    asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]
]


class HostPool:
    """A number of threads that take jobs in order. `run` belongs to event loops, `close` to any
    thread.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ternaus-host-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self, work: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> asyncio.Future[Result]:
        """What `work` returns or raises. Cancelling drops a job that has not begun.

        Raises RuntimeError once the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the host threads have ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._jobs.put((loop, future, work, arguments))
        return future

    def close(self) -> None:
        """Finish what was taken, then end the threads. Blocks; idempotent."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, work, arguments = job
            if not future.cancelled():
                result: Any = None
                error: BaseException | None = None
                try:
                    result = work(*arguments)
                except BaseException as exc:  # whatever it is belongs to the one who waits
                    error = exc
                with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
                    loop.call_soon_threadsafe(_settle, future, result, error)
                # An idle thread keeps no picture, nor an error its own frame.
                del result, error
            del job, loop, future, work, arguments


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """On the event loop: hand the outcome over, if anybody still waits."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        # No future takes one: whoever awaits would end as if all were well.
        future.set_exception(RuntimeError("a job raised StopIteration"))
    else:
        future.set_exception(error)
