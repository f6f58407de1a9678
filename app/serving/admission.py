"""The door: who may come in, decided before the body is read, from what is known by then.

Bounds are requests, received bytes, decoded pixels and seconds: what cannot meet its deadline is
refused at once with the time after which it is worth coming back. A permit is released on every way
out. Lives on the event loop; needs no lock.

The predicted wait knows the device's queue. What it does not know (decoding, the rest of a running
batch, the batch that a picture ends in, a busy processor) is measured: by how much the predictions
of the last requests fell short. Without that a full server would accept just what it can begin in
time, and finish all of it too late.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import deque
from collections.abc import Callable
from types import TracebackType

from app.errors import BodyTooLarge, Draining, NotReady, Overloaded, PictureTooLarge, QueueFull
from app.serving.bounds import Bounds, Doors, OneDoor
from app.serving.clock import Clock

__all__ = ["Admission", "Bounds", "Permit"]

# Predictions that are looked back at: so many, so long, and the share of them that must hold.
_WINDOW = 128
_MEMORY_S = 10.0
_HOLDS = 0.99


class Permit:
    """The right of one request to be worked on. A context manager; releasing twice is harmless."""

    def __init__(self, door: Admission, received: int) -> None:
        self._door = door
        self._bytes = 0
        self._pixels = 0
        self._released = False
        self._coming = True
        self._begun = self._predicted = 0.0
        self._guessed = True
        self.add_bytes(received)

    def add_bytes(self, count: int) -> None:
        """`count` more bytes are held. Raises BodyTooLarge or QueueFull and holds nothing more."""
        bounds = self._door.bounds
        if self._bytes + count > bounds.max_body_bytes:
            raise BodyTooLarge(
                f"the body is larger than {bounds.max_body_bytes:,} bytes (TERNAUS_MAX_BODY_BYTES)",
                limit="TERNAUS_MAX_BODY_BYTES",
                limit_value=bounds.max_body_bytes,
            )
        held = self._door.bytes + self._door.doors.others().bytes
        if held + count > bounds.max_body_bytes_in_flight and held > self._bytes:
            raise QueueFull(
                "too many bytes are being worked on (TERNAUS_MAX_BODY_BYTES_IN_FLIGHT)",
                limit="TERNAUS_MAX_BODY_BYTES_IN_FLIGHT",
                limit_value=bounds.max_body_bytes_in_flight,
                retry_after_s=self._door.wait_s(),
            )
        self._bytes += count
        self._door.bytes += count
        self._door.tell()

    def add_pixels(self, count: int) -> None:
        """A picture of `count` pixels is about to be decoded. Raises QueueFull or
        PictureTooLarge.
        """
        bounds = self._door.bounds
        if count > bounds.max_pixels_in_flight:
            raise PictureTooLarge(
                f"{count:,} pixels are more than this server works on at once, "
                f"{bounds.max_pixels_in_flight:,} (TERNAUS_MAX_PIXELS_IN_FLIGHT)",
                limit="TERNAUS_MAX_PIXELS_IN_FLIGHT",
                limit_value=bounds.max_pixels_in_flight,
            )
        held = self._door.pixels + self._door.doors.others().pixels
        if held + count > bounds.max_pixels_in_flight:
            raise QueueFull(
                "too many pixels are being worked on (TERNAUS_MAX_PIXELS_IN_FLIGHT)",
                limit="TERNAUS_MAX_PIXELS_IN_FLIGHT",
                limit_value=bounds.max_pixels_in_flight,
                retry_after_s=self._door.wait_s(),
            )
        self._pixels += count
        self._door.pixels += count
        self._door.tell()

    def in_queue(self) -> None:
        """Its tiles are in the batcher's queue now and counted there."""
        if self._coming:
            self._coming = False
            self._door.coming -= 1
            self._door.tell()

    def begin(self) -> None:
        """The body is there: from now on the time is ours."""
        self._begun, self._predicted = self._door.now(), self._door.wait_s()
        self._guessed = not self._door.taught

    def end(self) -> None:
        """The picture is done, or its time has run out: how long it took against the prediction.

        For pictures of one tile; how long others take depends on what the door cannot know. What
        was predicted before any picture had been done does not count either: a burst on a fresh
        server was told to wait for nothing, and would shut the door on the next.
        """
        if self._guessed:
            return
        self._door.look_back(self._door.now() - self._begun - self._predicted)

    def release_device(self, device_s: float) -> None:
        """The device is done with it, after so many seconds; the reply is still to be sent."""
        self._door.learn(device_s)

    def release(self) -> None:
        """Give everything back."""
        if self._released:
            return
        self._released = True
        self.in_queue()
        self._door.leave()
        self._door.bytes -= self._bytes
        self._door.pixels -= self._pixels
        self._door.tell()

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Admission:
    """Counts what is inside and refuses what does not fit or cannot be done in time."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        clock: Clock,
        backlog_s: Callable[[], float],
        ready: Callable[[], bool],
        refused: Callable[[str], None] = lambda reason: None,
        doors: Doors | None = None,
    ) -> None:
        self.bounds = bounds
        self.doors = doors or OneDoor()
        self.requests = 0
        self.bytes = 0
        self.pixels = 0
        self.coming = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._clock = clock
        self._backlog_s = backlog_s
        self._ready = ready
        self._refused = refused
        self._mean_s = 0.0
        self.taught = False
        # The same errors twice: in the order in which they came, with their moments, and by size.
        self._errors: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []

    def now(self) -> float:
        """The clock that permits are measured by."""
        return self._clock.now()

    def leave(self) -> None:
        """A request is done, whichever way."""
        self.requests -= 1
        if self.requests == 0:
            self._empty.set()

    def tell(self) -> None:
        """Let the other doors know what is inside."""
        self.doors.tell(self)

    async def emptied(self) -> None:
        """Return once no request is inside."""
        await self._empty.wait()

    def learn(self, device_s: float) -> None:
        """A request took `device_s` of the device: the guess for those still on their way."""
        self.taught = True
        self._mean_s = device_s if self._mean_s == 0.0 else 0.9 * self._mean_s + 0.1 * device_s

    def look_back(self, error_s: float) -> None:
        """A prediction fell short by `error_s` (or, negative, was too long)."""
        self._errors.append((self._clock.now(), error_s))
        bisect.insort(self._ordered, error_s)
        if len(self._errors) > _WINDOW:
            self._forget()

    def slip_s(self) -> float:
        """Seconds to add to a prediction so that it holds; 0 where nothing was seen lately, so that
        one bad moment cannot keep the door shut.
        """
        since = self._clock.now() - _MEMORY_S
        while self._errors and self._errors[0][0] < since:
            self._forget()
        if not self._ordered:
            return 0.0
        return max(0.0, self._ordered[math.ceil(_HOLDS * len(self._ordered)) - 1])

    def _forget(self) -> None:
        _, oldest = self._errors.popleft()
        del self._ordered[bisect.bisect_left(self._ordered, oldest)]

    def wait_s(self) -> float:
        """Predicted seconds of work that is inside already."""
        return self._backlog_s() + (self.coming + self.doors.others().coming) * self._mean_s

    def admit(self, *, deadline: float, content_length: int | None) -> Permit:
        """Let a request in, or raise Draining, NotReady, QueueFull, Overloaded or BodyTooLarge."""
        try:
            return self._admit(deadline, content_length or 0)
        except (Draining, NotReady, QueueFull, Overloaded) as exc:
            self._refused(exc.code)
            raise

    def _admit(self, deadline: float, content_length: int) -> Permit:
        bounds = self.bounds
        if self.draining:
            raise Draining("this server is shutting down", retry_after_s=1.0)
        if not self._ready():
            raise NotReady("no model is ready", retry_after_s=2.0)
        if content_length > bounds.max_body_bytes:
            raise BodyTooLarge(
                f"the body has {content_length:,} bytes; this server takes at most "
                f"{bounds.max_body_bytes:,} (TERNAUS_MAX_BODY_BYTES)",
                limit="TERNAUS_MAX_BODY_BYTES",
                limit_value=bounds.max_body_bytes,
            )
        inside = self.requests + self.doors.others().requests
        if inside >= bounds.max_requests:
            raise QueueFull(
                f"{inside} requests are being worked on (TERNAUS_MAX_REQUESTS)",
                limit="TERNAUS_MAX_REQUESTS",
                limit_value=bounds.max_requests,
                retry_after_s=max(1.0, self.wait_s() / 2),
            )
        left = deadline - self._clock.now()
        wait = self.wait_s() + self._mean_s + self.slip_s() if inside else 0.0
        if wait > left:
            raise Overloaded(
                f"estimated wait {wait * 1000:.0f} ms exceeds the time left, {left * 1000:.0f} ms",
                retry_after_s=max(0.0, wait - left) or 1.0,
            )
        self.requests += 1
        self.coming += 1
        self._empty.clear()
        return self._open(content_length)

    def _open(self, content_length: int) -> Permit:
        try:
            return Permit(self, content_length)
        except BaseException:
            self.coming -= 1
            self.leave()
            raise
