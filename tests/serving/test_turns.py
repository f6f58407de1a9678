"""The device goes to whoever asked first."""

from __future__ import annotations

import threading

from app.serving.turns import Turns

PATIENCE = 20.0


def waiting(turns: Turns) -> int:
    return len(turns._waiting)


def test_turns_are_had_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), []
    asked = threading.Event()

    def take(name: str) -> None:
        with turns.turn():
            order.append(name)

    with turns.turn():
        threads = []
        for index, name in enumerate("abcde"):
            thread = threading.Thread(target=take, args=(name,))
            thread.start()
            threads.append(thread)
            while waiting(turns) <= index:
                asked.wait(0.001)
        assert not order
    # A latecomer finds the device handed on, never free in between.
    take("last")
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [*"abcde", "last"]


def test_turn_ends_with_an_error_too() -> None:
    turns = Turns()
    try:
        with turns.turn():
            raise ValueError
    except ValueError:
        pass
    with turns.turn():
        assert not waiting(turns)
