"""Every figure of the server, in Prometheus terms, one registry per application.

Durations have fine buckets from 250 microseconds (factor 1.5); labels are of low cardinality: never
a request id, a file name or a picture size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.serving.lanes import Lane

DURATIONS = tuple(round(0.00025 * 1.5**i, 6) for i in range(30))
BATCHES = tuple(float(2**i) for i in range(10))


class Metrics:
    """Counters and histograms; also what the batcher reports to (its Observer)."""

    def __init__(self) -> None:
        # A `_created` series beside every counter doubles the page and says nothing here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "ternaus_requests", "Requests answered", ["route", "code", "reason"], registry=registry
        )
        self.request_seconds = Histogram(
            "ternaus_request_duration_seconds",
            "Headers to last byte",
            ["route"],
            buckets=DURATIONS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "ternaus_stage_duration_seconds",
            "Time of a request in each stage",
            ["stage"],
            buckets=DURATIONS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "ternaus_batch_images",
            "Tiles in a launched batch",
            ["model"],
            buckets=BATCHES,
            registry=registry,
        )
        self.batch_fill = Histogram(
            "ternaus_batch_fill_ratio",
            "Tiles in a batch by what would fit",
            ["model"],
            buckets=tuple(i / 8 for i in range(1, 9)),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "ternaus_batch_duration_seconds",
            "Device time of a batch",
            ["model"],
            buckets=DURATIONS,
            registry=registry,
        )
        self.batches = Counter(
            "ternaus_batches",
            "Batches launched, by why they went",
            ["model", "trigger"],
            registry=registry,
        )
        self.retries = Counter(
            "ternaus_batch_retries", "Batches run again in parts", ["cause"], registry=registry
        )
        self.rejected = Counter(
            "ternaus_rejected", "Requests refused at the door", ["reason"], registry=registry
        )
        self.cancelled = Counter(
            "ternaus_cancelled", "Work dropped because nobody waits", ["stage"], registry=registry
        )
        self.late = Counter(
            "ternaus_deadline_missed",
            "Work dropped because its time ran out",
            ["stage"],
            registry=registry,
        )
        self.images = Counter(
            "ternaus_images", "Pictures by outcome", ["outcome"], registry=registry
        )
        self.pixels = Counter(
            "ternaus_pixels", "Pixels of the pictures segmented", registry=registry
        )
        self.padding = Counter(
            "ternaus_padding_pixels",
            "Pixels computed beyond those of the pictures",
            registry=registry,
        )
        self.model_info = Gauge(
            "ternaus_model_info",
            "Open models",
            ["name", "version", "digest", "device", "precision"],
            registry=registry,
        )
        self.last_batch = Gauge(
            "ternaus_last_batch_timestamp_seconds",
            "Unix time of the last finished batch",
            registry=registry,
        )

        # `labels()` checks and locks each time; the children of the hot path are looked up once.
        self._stages: dict[str, Histogram] = {}
        self._routes: dict[tuple[str, str, str], tuple[Counter, Counter, Histogram]] = {}

    def stage(self, name: str, seconds: float) -> None:
        """A request was so long in this stage."""
        child = self._stages.get(name)
        if child is None:
            child = self._stages[name] = self.stage_seconds.labels(name)
        child.observe(seconds)

    def request(self, route: str, code: str, reason: str, seconds: float) -> None:
        """A picture's request ended so, after so long."""
        children = self._routes.get((route, code, reason))
        if children is None:
            children = self._routes[route, code, reason] = (
                self.requests.labels(route, code, reason),
                self.images.labels(reason),
                self.request_seconds.labels(route),
            )
        requests, images, took = children
        requests.inc()
        images.inc()
        took.observe(seconds)

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
