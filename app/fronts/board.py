"""One piece of shared memory where every process writes what it alone knows, and all may read it.

The engine writes what its device does, each front end what it holds; each has a ledger for its
metrics. Every number is eight aligned bytes, so no read sees half of one, and none needs the other
process to answer: a process that hangs is seen as what it is.
"""

from __future__ import annotations

from app.fronts.memory import Memory
from app.serving.bounds import Held, Inside
from app.serving.ledger import SIZE as LEDGER_SIZE

# More front ends than that are not begun.
SEATS = 64
_PAGE = 4096
STATES = ("starting", "restarting", "ok", "idle", "failing", "stalled", "lost")


class Numbers:
    """Named float64 values at a place of the board."""

    NAMES: tuple[str, ...] = ()

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory.cast("d")
        self._index = {name: number for number, name in enumerate(self.NAMES)}

    def get(self, name: str) -> float:
        return float(self._memory[self._index[name]])

    def put(self, **values: float) -> None:
        for name, value in values.items():
            self._memory[self._index[name]] = float(value)


class EngineNumbers(Numbers):
    """Written by the engine process.

    `heartbeat` is a moment of the clock; `state` an index into STATES; the rest are the figures of
    `Batcher.figures`. `busy_seconds` goes on where the last engine stopped.
    """

    NAMES = (
        "heartbeat",
        "state",
        "tiles",
        "pixels",
        "oldest_age_seconds",
        "estimated_wait_seconds",
        "busy_seconds",
        "seconds_per_pixel",
    )
    FIGURES = NAMES[2:7]

    @property
    def state(self) -> str:
        return STATES[int(self.get("state"))]


class SeatNumbers(Numbers):
    """Written by one front end, but for `taken`: the last tag that the engine has queued."""

    NAMES = ("requests", "bytes", "pixels", "coming", "used_bytes", "taken")


class Board:
    """The whole."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        view = memory.view
        self.engine = EngineNumbers(view[:_PAGE])
        self.seats = [SeatNumbers(view[at : at + _PAGE]) for at in _pages(1, SEATS)]
        ledgers = _PAGE * (1 + SEATS)
        self._ledgers = [
            view[at : at + LEDGER_SIZE]
            for at in range(ledgers, ledgers + LEDGER_SIZE * (SEATS + 1), LEDGER_SIZE)
        ]

    @classmethod
    def new(cls) -> Board:
        """Only what is written takes memory."""
        return cls(Memory.new("ternaus-board", _PAGE * (1 + SEATS) + LEDGER_SIZE * (SEATS + 1)))

    def ledger(self, seat: int | None) -> memoryview:
        """Memory for the metrics of a front end, or (None) of the engine."""
        return self._ledgers[SEATS if seat is None else seat]

    def leave(self, seat: int) -> None:
        """This front end is gone, and with it what it held."""
        self.seats[seat].put(requests=0, bytes=0, pixels=0, coming=0, used_bytes=0)


def _pages(first: int, count: int) -> range:
    return range(first * _PAGE, (first + count) * _PAGE, _PAGE)


class SharedDoors:
    """Admission's view of the other front ends: the bounds hold for all of them together.

    Two doors that look at the same instant may both let one in: the bounds may be passed by one
    request for each other front end, never by more.
    """

    def __init__(self, board: Board, seat: int, count: int) -> None:
        self._own = board.seats[seat]
        self._others = [n for index, n in enumerate(board.seats[:count]) if index != seat]

    def others(self) -> Inside:
        found = [0.0, 0.0, 0.0, 0.0]
        for numbers in self._others:
            for index, name in enumerate(("requests", "bytes", "pixels", "coming")):
                found[index] += numbers.get(name)
        return Inside(*(int(value) for value in found))

    def tell(self, inside: Held) -> None:
        self._own.put(
            requests=inside.requests,
            bytes=inside.bytes,
            pixels=inside.pixels,
            coming=inside.coming,
        )
