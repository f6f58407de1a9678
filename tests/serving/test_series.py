"""Metrics over ledgers say what prometheus_client says, and go on where a dead process stopped."""

from __future__ import annotations

import threading

import prometheus_client as theirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.ledger import Ledger
from app.serving.series import Book, Counter, Gauge, Histogram

theirs.disable_created_metrics()  # type: ignore[no-untyped-call]
# Sums of these are exact too.
BOUNDS = (1 / 1024, 1 / 64, 0.25, 1.0)


class Ours:
    """A process with its metrics."""

    def __init__(self, ledger: Ledger | None = None, *others: Ledger) -> None:
        self.book = Book(ledger, others)
        self.plain = Counter("plain", "Without labels", book=self.book)
        self.done = Counter("done", "Things done", ["kind", "code"], book=self.book)
        self.took = Histogram("took_seconds", "Time", ["kind"], buckets=BOUNDS, book=self.book)
        self.level = Gauge("level", "What is", ["of"], book=self.book)
        self.registry = theirs.CollectorRegistry()
        self.registry.register(self.book)

    def text(self) -> list[str]:
        return sorted(theirs.generate_latest(self.registry).decode().splitlines())


class Theirs:
    """The same by prometheus_client itself."""

    def __init__(self) -> None:
        registry = self.registry = theirs.CollectorRegistry()
        self.plain = theirs.Counter("plain", "Without labels", registry=registry)
        self.done = theirs.Counter("done", "Things done", ["kind", "code"], registry=registry)
        self.took = theirs.Histogram(
            "took_seconds", "Time", ["kind"], buckets=BOUNDS, registry=registry
        )
        self.level = theirs.Gauge("level", "What is", ["of"], registry=registry)

    def text(self) -> list[str]:
        return sorted(theirs.generate_latest(self.registry).decode().splitlines())


kinds = st.sampled_from(["good", 'with "quotes"', "naïve\n", ""])
# Sums of these are exact, whatever their order.
amounts = st.integers(0, 4000).map(lambda n: n / 1024)
events = st.lists(
    st.one_of(
        st.tuples(st.just("plain"), amounts),
        st.tuples(st.just("done"), kinds, st.integers(200, 204), amounts),
        st.tuples(st.just("took"), kinds, st.one_of(amounts, st.sampled_from(BOUNDS))),
    ),
    max_size=60,
)


def happen(metrics: Ours | Theirs, event: tuple) -> None:  # type: ignore[type-arg]
    match event:
        case ("plain", amount):
            metrics.plain.inc(amount)
        case ("done", kind, code, amount):
            metrics.done.labels(kind, code).inc(amount)
        case ("took", kind, value):
            metrics.took.labels(kind).observe(value)


@settings(deadline=None)
@given(events)
def test_one_process_says_what_prometheus_client_says(happened: list[tuple]) -> None:  # type: ignore[type-arg]
    ours, reference = Ours(), Theirs()
    for event in happened:
        happen(ours, event)
        happen(reference, event)
    ours.level.labels("water").set(7.5)
    reference.level.labels("water").set(7.5)
    assert ours.text() == reference.text()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), events), max_size=6))
def test_any_of_several_processes_tells_all_and_a_successor_goes_on(
    rounds: list[tuple[int, list[tuple]]],  # type: ignore[type-arg]
) -> None:
    memories = [memoryview(bytearray(2**16)) for _ in range(3)]
    reference = Theirs()
    for seat, happened in rounds:
        # A new process in the seat of one that may have counted before and is dead.
        process = Ours(Ledger(memories[seat]))
        for event in happened:
            happen(process, event)
            happen(reference, event)
    for seat in range(3):
        others = [Ledger(memory) for index, memory in enumerate(memories) if index != seat]
        assert Ours(Ledger(memories[seat]), *others).text() == reference.text()


def test_gauge_of_a_dead_process_is_forgotten_and_its_counts_are_not() -> None:
    memory = memoryview(bytearray(2**16))
    dead = Ours(Ledger(memory))
    dead.level.labels("water").set(3)
    dead.done.labels("good", 200).inc(5)
    Ledger(memory).forget_gauges()
    text = "\n".join(Ours(None, Ledger(memory)).text())
    assert "level{" not in text
    assert 'done_total{code="200",kind="good"} 5.0' in text
    Ours(Ledger(memory)).level.labels("water").set(0)
    assert 'level{of="water"} 0.0' in "\n".join(Ours(None, Ledger(memory)).text())


def test_largest_gauge_counts_and_a_removed_one_does_not() -> None:
    one, other = Ours(Ledger()), Ours(Ledger())
    one.level.labels("water").set(3)
    other.level.labels("water").set(5)
    other.level.labels("oil").set(1)
    other.level.remove("oil")
    text = "\n".join(Ours(None, one.book.ledger, other.book.ledger).text())
    assert 'level{of="water"} 5.0' in text
    assert "oil" not in text


def test_threads_lose_no_count() -> None:
    metrics = Ours()

    def count() -> None:
        for _ in range(5000):
            metrics.done.labels("good", 200).inc()
            metrics.took.labels("good").observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = metrics.text()
    assert 'done_total{code="200",kind="good"} 20000.0' in text
    assert 'took_seconds_count{kind="good"} 20000.0' in text
    assert 'took_seconds_sum{kind="good"} 10000.0' in text


def test_full_ledger_counts_on_for_this_process(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Ours(Ledger(memoryview(bytearray(1024))))
    for code in range(100):
        metrics.done.labels("good", code).inc()
        metrics.done.labels("good", code).inc()
    text = metrics.text()
    assert all(f'done_total{{code="{code}",kind="good"}} 2.0' in text for code in range(100))
    assert caplog.text.count("is full") == 1


def test_wrong_labels_are_a_defect() -> None:
    with pytest.raises(ValueError, match="kind"):
        Ours().done.labels("good")
