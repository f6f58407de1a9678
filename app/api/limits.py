"""The request's body, counted while it streams in, with an end to every wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from app.api.visits import Client
from app.errors import BadParameter, BodyTooSlow, ClientGone, DeadlineExceeded
from app.serving.admission import Permit
from app.serving.clock import Clock

Receive = Callable[[], Awaitable[Any]]


def timeout_s(header: bytes | None, most: float) -> float:
    """Seconds that a request may take: `X-Request-Timeout-Ms`, where given, lowers the server's
    own.

    Raises BadParameter for anything but a whole number of milliseconds above zero.
    """
    if header is None:
        return most
    if not header.isdigit() or not 0 < int(header) < 10**9:
        raise BadParameter(
            "`X-Request-Timeout-Ms` must be a whole number of milliseconds above 0, "
            f"not `{header.decode('latin-1')}`"
        )
    return min(most, int(header) / 1000)


async def read_body(
    receive: Receive,
    permit: Permit,
    *,
    announced: int | None,
    deadline: float,
    silence_s: float,
    clock: Clock,
    client: Client,
) -> bytes:
    """The whole body. `announced` bytes are on the permit already; more are added as they come.
    No clock runs where all of it is here.

    Raises BodyTooLarge or QueueFull (from the permit), BodyTooSlow after `silence_s` without a
    byte, DeadlineExceeded, and ClientGone when the client leaves.
    """
    parts: list[bytes] = []
    counted = announced or 0
    received = 0
    while True:
        if client.whole:
            message = await receive()
        else:
            message = await _in_time(receive, deadline - clock.now(), silence_s)
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left while its body was received")
        part = message.get("body", b"")
        received += len(part)
        if received > counted:
            permit.add_bytes(received - counted)
            counted = received
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _in_time(receive: Receive, left: float, silence_s: float) -> Any:
    try:
        async with asyncio.timeout(max(0.0, min(left, silence_s))):
            return await receive()
    except TimeoutError:
        if left <= silence_s:
            raise DeadlineExceeded(
                "the time of this request ran out while its body was received", stage="receive"
            ) from None
        raise BodyTooSlow(
            f"no byte of the body came for {silence_s:g} s (TERNAUS_BODY_TIMEOUT_S)",
            limit="TERNAUS_BODY_TIMEOUT_S",
            limit_value=silence_s,
        ) from None
