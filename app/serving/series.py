"""Counters, gauges and histograms over ledgers: each process writes its own and tells all.

    book = Book(Ledger()); done = Counter("ternaus_done", "Things done", ["kind"], book)
    done.labels("good").inc()

The methods are those of prometheus_client's own metrics. These exist because its files for several
processes keep the gauges of dead ones and know no collectors of one's own, and because asking every
process at each scrape would hang with the one that hangs.
"""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from app.serving.ledger import Ledger

Kept = TypeVar("Kept", bound="Series")


class Book:
    """The families of one process, its ledger, and the ledgers of the others.

    Counters and histograms of all ledgers are added up; of a gauge the largest counts.
    """

    def __init__(self, ledger: Ledger | None = None, others: Sequence[Ledger] = ()) -> None:
        self.ledger = ledger or Ledger()
        self.others = others
        self.families: list[Family[Series]] = []

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client's registry: every family, over all processes."""
        numbers: dict[str, dict[tuple[str, ...], list[float]]] = {}
        for ledger in (self.ledger, *self.others):
            for key, values in ledger.entries():
                kind, name, *labels = json.loads(key)
                known = numbers.setdefault(name, {})
                before = known.get(tuple(labels))
                if before is not None:
                    both = zip(before, values, strict=True)
                    values = [max(pair) if kind == "gauge" else sum(pair) for pair in both]
                known[tuple(labels)] = values
        for family in self.families:
            yield family.metric(numbers.get(family.name, {}))


class Series:
    """One combination of labels."""

    __slots__ = ("_family", "_ledger", "_place")

    def __init__(self, family: Family[Series], labels: tuple[str, ...], numbers: int) -> None:
        self._family = family
        self._ledger = family.ledger
        self._place = self._ledger.place(json.dumps([family.kind, family.name, *labels]), numbers)


class Family(Generic[Kept]):
    """A metric with its labels."""

    kind: ClassVar[str]
    series: type[Kept]
    bounds: tuple[float, ...] = ()

    def __init__(self, name: str, words: str, labels: Sequence[str] = (), *, book: Book) -> None:
        self.name = name
        self.words = words
        self.label_names = tuple(labels)
        self.ledger = book.ledger
        self._children: dict[tuple[str, ...], Kept] = {}
        book.families.append(self)  # type: ignore[arg-type]
        if not labels:
            self.labels()

    def labels(self, *values: object) -> Kept:
        """The series of these label values, in the order of the names."""
        found = self._children.get(values)  # type: ignore[arg-type]
        if found is None:
            words = tuple(str(value) for value in values)
            if len(words) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}, not {words}")
            found = self._children[words] = self.series(
                self,  # type: ignore[arg-type]
                words,
                len(self.bounds) + 2 if self.bounds else 1,
            )
        return found

    def metric(self, numbers: dict[tuple[str, ...], list[float]]) -> Metric:
        """The family with the numbers of all processes, by label values."""
        raise NotImplementedError


class _Count(Series):
    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        self._ledger.add(self._place, amount)


class Counter(Family[_Count]):
    """What only grows."""

    kind = "counter"
    series = _Count

    def inc(self, amount: float = 1.0) -> None:
        self.labels().inc(amount)

    def metric(self, numbers: dict[tuple[str, ...], list[float]]) -> Metric:
        found = CounterMetricFamily(self.name, self.words, labels=self.label_names)
        for labels, values in numbers.items():
            found.add_metric(labels, values[0])
        return found


class _Level(Series):
    __slots__ = ()

    def set(self, value: float) -> None:
        self._ledger.put(self._place, value)


class Gauge(Family[_Level]):
    """What is."""

    kind = "gauge"
    series = _Level

    def set(self, value: float) -> None:
        self.labels().set(value)

    def set_to_current_time(self) -> None:
        self.set(time.time())

    def remove(self, *values: object) -> None:
        """This combination of labels is no more."""
        self.labels(*values).set(-math.inf)

    def metric(self, numbers: dict[tuple[str, ...], list[float]]) -> Metric:
        found = GaugeMetricFamily(self.name, self.words, labels=self.label_names)
        for labels, values in numbers.items():
            if values[0] != -math.inf:
                found.add_metric(labels, values[0])
        return found


class Spread(Series):
    """Sizes, counted in buckets."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        self._ledger.observe(self._place, bisect_left(self._family.bounds, value), value)


class Histogram(Family[Spread]):
    """How often which size; a value that equals a bound counts below it."""

    kind = "histogram"
    series = Spread

    def __init__(
        self,
        name: str,
        words: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        book: Book,
    ) -> None:
        self.bounds = tuple(buckets)
        super().__init__(name, words, labels, book=book)

    def observe(self, value: float) -> None:
        self.labels().observe(value)

    def metric(self, numbers: dict[tuple[str, ...], list[float]]) -> Metric:
        found = HistogramMetricFamily(self.name, self.words, labels=self.label_names)
        for labels, values in numbers.items():
            total, buckets = 0.0, []
            for bound, count in zip((*self.bounds, math.inf), values, strict=False):
                total += count
                buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]
            found.add_metric(labels, buckets, values[-1])
        return found
