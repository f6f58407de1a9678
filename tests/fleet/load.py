"""Steady load from several clients at once, every answer written down and its mask looked at."""

from __future__ import annotations

import contextlib
import http.client
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.server import THRESHOLDS, encoded, picture, truth

# The sides of the pictures: one that fits into the balancer's buffer and one that does not.
SMALL, LARGE = (48, 80), (300, 400)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request. `status` 0: the connection broke."""

    begun: float
    ended: float
    status: int
    replica: str
    right: bool
    words: str
    model: str = ""

    @property
    def lost(self) -> bool:
        return not self.right


@dataclass(slots=True)
class Load:
    """The replies so far."""

    replies: list[Reply] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    pending: dict[int, float] = field(default_factory=dict)

    @property
    def lost(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.lost]

    def after(self, moment: float) -> list[Reply]:
        return [reply for reply in self.replies if reply.begun >= moment]

    def models(self, replica: str) -> list[str]:
        """Which versions a replica answered with, one after the other, as they were asked for."""
        found = [reply for reply in self.replies if reply.right and reply.replica == replica]
        return [reply.model for reply in sorted(found, key=lambda reply: reply.begun)]

    def replicas(self) -> set[str]:
        return {reply.replica for reply in self.replies if reply.right}


@contextlib.contextmanager
def steady_load(
    url: str, *, clients: int = 6, pause_s: float = 0.02, large_every: int = 4
) -> Iterator[Load]:
    """`clients` send one picture after the other, each on its own kept-alive connection.

    When the block ends, what is on its way is awaited; the replies are then complete.
    """
    load, ending = Load(), threading.Event()
    bodies = [picture(*side, seed=side[0]) for side in (SMALL, LARGE)]
    pictures = [(encoded(pixels, compress_level=0), pixels) for pixels in bodies]

    def client(index: int) -> None:
        address = url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=90)
        try:
            count = index
            while not ending.is_set():
                count += 1
                data, pixels = pictures[int(large_every > 0 and count % large_every == 0)]
                begun = load.pending[index] = time.monotonic()
                load.replies.append(_send(connection, begun, data, pixels))
                del load.pending[index]
                ending.wait(pause_s)
        except BaseException as exc:
            load.failed.append(exc)
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ending.set()
        for thread in threads:
            thread.join(120)
    assert not load.failed, load.failed


def _send(
    connection: http.client.HTTPConnection, begun: float, data: bytes, pixels: NDArray[np.uint8]
) -> Reply:
    try:
        connection.request("POST", "/segment", data, {"Accept": "image/png"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        connection.close()
        return Reply(begun, time.monotonic(), 0, "", False, repr(exc))
    replica = answer.headers.get("x-replica", "")
    if answer.status != 200:
        return Reply(begun, time.monotonic(), answer.status, replica, False, body.decode()[:300])
    model = answer.headers.get("x-model", "")
    expected = truth(pixels, THRESHOLDS[int(model.partition("@")[2])])
    with Image.open(io.BytesIO(body)) as image:
        right = np.array_equal(np.asarray(image) > 0, expected)
    words = "" if right else "another mask"
    return Reply(begun, time.monotonic(), 200, replica, right, words, model)
