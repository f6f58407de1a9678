"""A house for ordinary code that waits: on a thread of its own, with an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

from app.errors import TernausError
from app.serving.house import House
from app.serving.segmenter import Answer, Ask, Timings

Result = TypeVar("Result")


def at_once() -> int:
    """Pictures to work on at the same time where nobody else decides: each core has a next one."""
    return 2 * len(os.sched_getaffinity(0))


async def segment_bytes(house: House, data: bytes, ask: Ask) -> Answer:
    """A picture through the door and all the way, without a deadline."""
    forever = float("inf")
    with house.admission.admit(deadline=forever, content_length=len(data)) as permit:
        return await house.segmenter.segment(
            data, ask, deadline=forever, permit=permit, timings=Timings()
        )


class Desk:
    """Takes pictures from any thread, several at once.

    with Desk(lambda: House.local(...), ("buildings",)) as desk:
        answers = desk.segment([jpeg, png], Ask(format="rle"))

    Raises what opening the models raises.
    """

    def __init__(self, house: Callable[[], House], labels: tuple[str, ...]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ternaus-desk", daemon=True
        )
        self._thread.start()
        try:
            self.house = self._wait(self._open(house, labels))
        except BaseException:
            self._stop()
            raise

    async def _open(self, house: Callable[[], House], labels: tuple[str, ...]) -> House:
        made = house()
        try:
            await made.open(labels)
        except BaseException:
            await made.close()
            raise
        return made

    def segment(self, pictures: Sequence[bytes], ask: Ask) -> list[Answer | TernausError]:
        """An answer for each picture, in order, or what is wrong with it; no deadline."""
        return self._wait(self._all(pictures, ask))

    async def _all(self, pictures: Sequence[bytes], ask: Ask) -> list[Answer | TernausError]:
        room = asyncio.Semaphore(at_once())

        async def one(data: bytes) -> Answer | TernausError:
            async with room:
                try:
                    return await segment_bytes(self.house, data, ask)
                except TernausError as exc:
                    return exc

        return await asyncio.gather(*(one(data) for data in pictures))

    def close(self) -> None:
        """Finish what is inside, then give the device back."""
        if self._thread.is_alive():
            self._wait(self.house.close())
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
