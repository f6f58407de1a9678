"""Every figure of the server, in Prometheus terms, one registry per application.

Durations have fine buckets from 250 microseconds (factor 1.5); labels are of low cardinality: never
a request id, a file name or a picture size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.engine.base import Engine
from app.serving.lanes import Lane
from app.serving.series import Book, Counter, Gauge, Histogram

DURATIONS = tuple(round(0.00025 * 1.5**i, 6) for i in range(30))
BATCHES = tuple(float(2**i) for i in range(10))
# How a load may end.
LOADS = ("loaded", "already_open", "failed")


class Metrics:
    """Counters and histograms; also what the batcher reports to (its Observer)."""

    def __init__(self, book: Book | None = None) -> None:
        """`book`: of several processes, with the numbers of the others; none: of this one alone."""
        self.book = book or Book()
        self.registry = CollectorRegistry()
        book = self.book
        self.requests = Counter(
            "ternaus_requests", "Requests answered", ["route", "code", "reason"], book=book
        )
        self.request_seconds = Histogram(
            "ternaus_request_duration_seconds",
            "Headers to last byte",
            ["route"],
            buckets=DURATIONS,
            book=book,
        )
        self.stage_seconds = Histogram(
            "ternaus_stage_duration_seconds",
            "Time of a request in each stage",
            ["stage"],
            buckets=DURATIONS,
            book=book,
        )
        self.batch_images = Histogram(
            "ternaus_batch_images",
            "Tiles in a launched batch",
            ["model"],
            buckets=BATCHES,
            book=book,
        )
        self.batch_fill = Histogram(
            "ternaus_batch_fill_ratio",
            "Tiles in a batch by what would fit",
            ["model"],
            buckets=tuple(i / 8 for i in range(1, 9)),
            book=book,
        )
        self.batch_seconds = Histogram(
            "ternaus_batch_duration_seconds",
            "Device time of a batch",
            ["model"],
            buckets=DURATIONS,
            book=book,
        )
        self.batches = Counter(
            "ternaus_batches",
            "Batches launched, by why they went",
            ["model", "trigger"],
            book=book,
        )
        self.retries = Counter(
            "ternaus_batch_retries", "Batches run again in parts", ["cause"], book=book
        )
        self.rejected = Counter(
            "ternaus_rejected", "Requests refused at the door", ["reason"], book=book
        )
        self.cancelled = Counter(
            "ternaus_cancelled", "Work dropped because nobody waits", ["stage"], book=book
        )
        self.late = Counter(
            "ternaus_deadline_missed",
            "Work dropped because its time ran out",
            ["stage"],
            book=book,
        )
        self.cut = Counter(
            "ternaus_connections_cut",
            "Connections cut off or refused, by why",
            ["reason"],
            book=book,
        )
        self.images = Counter("ternaus_images", "Pictures by outcome", ["outcome"], book=book)
        self.pixels = Counter("ternaus_pixels", "Pixels of the pictures segmented", book=book)
        self.padding = Counter(
            "ternaus_padding_pixels",
            "Pixels computed beyond those of the pictures",
            book=book,
        )
        self.model_info = Gauge(
            "ternaus_model_info",
            "Open models",
            ["name", "version", "digest", "device", "precision"],
            book=book,
        )
        self.model_loads = Counter(
            "ternaus_model_loads",
            "Models that were to be loaded while serving, by how it ended",
            ["name", "result"],
            book=book,
        )
        self.last_batch = Gauge(
            "ternaus_last_batch_timestamp_seconds",
            "Unix time of the last finished batch",
            book=book,
        )
        self.registry.register(self.book)

    def opened(self, engine: Engine) -> None:
        """A model is open."""
        # From here on they are 0: Prometheus sees no increase in what begins with 1.
        for result in LOADS:
            self.model_loads.labels(engine.spec.name, result)
        self.model_info.labels(*_info(engine)).set(1)

    def closed(self, engine: Engine) -> None:
        """It no longer is."""
        self.model_info.remove(*_info(engine))

    # What the batcher tells.

    def batch(self, lane: Lane, *, items: int, largest: int, seconds: float, trigger: str) -> None:
        model = lane.engine.spec.label
        self.batch_images.labels(model).observe(items)
        self.batch_fill.labels(model).observe(items / largest)
        self.batch_seconds.labels(model).observe(seconds)
        self.batches.labels(model, trigger).inc()
        self.last_batch.set_to_current_time()

    def retried(self, cause: str) -> None:
        self.retries.labels(cause).inc()

    def dropped(self, stage: str, reason: str) -> None:
        (self.late if reason == "deadline" else self.cancelled).labels(stage).inc()

    def watch(self, figures: Callable[[], dict[str, float]]) -> None:
        """Gauges read at scrape time. `figures` names them as `_Live` lists."""
        self.registry.register(_Live(figures))

    def render(self) -> bytes:
        """Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)


def _info(engine: Engine) -> tuple[str, ...]:
    spec, found = engine.spec, engine.describe()
    place = (found.get("device"), found.get("precision"))
    return (spec.name, str(spec.version), spec.digest, *(str(value) for value in place))


class _Live:
    """Gauges whose truth lies elsewhere and is asked for when Prometheus asks."""

    NAMES: ClassVar[dict[str, tuple[str, str]]] = {
        "tiles": ("ternaus_queue_images", "Tiles waiting for the device"),
        "pixels": ("ternaus_queue_pixels", "Pixels waiting for the device"),
        "oldest_age_seconds": (
            "ternaus_queue_oldest_age_seconds",
            "Age of the oldest waiting tile",
        ),
        "estimated_wait_seconds": ("ternaus_estimated_wait_seconds", "Predicted wait of new work"),
        "requests": ("ternaus_inflight_requests", "Requests being worked on"),
        "body_bytes": ("ternaus_inflight_bytes", "Received bytes being worked on"),
        "body_pixels": ("ternaus_inflight_pixels", "Decoded pixels being worked on"),
        "slot_bytes": (
            "ternaus_slot_bytes",
            "Shared memory in use between front ends and engine",
        ),
        "ready": ("ternaus_ready", "1 while new requests are taken"),
        "live": ("ternaus_live", "1 while the device makes progress"),
    }

    def __init__(self, figures: Callable[[], dict[str, float]]) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        figures = self._figures()
        found: list[Metric] = [
            GaugeMetricFamily(name, words, value=figures[key])
            for key, (name, words) in self.NAMES.items()
            if key in figures
        ]
        if "busy_seconds" in figures:
            found.append(
                CounterMetricFamily(
                    "ternaus_device_busy_seconds",
                    "Seconds the device computed",
                    value=figures["busy_seconds"],
                )
            )
        return found
