"""Figures of many requests, against numbers that can be counted by hand."""

from __future__ import annotations

import math

import pytest

from app.bench.shots import Run, Shot, percentile, stages_of


def shot(due: float, took: float, status: int = 200, **rest: object) -> Shot:
    made = Shot(due, sent=due, ended=due + took, status=status)
    for name, value in rest.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == expected


def test_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_goodput_counts_what_came_in_time_from_when_it_was_due() -> None:
    late = shot(1.0, 0.9)
    late.sent = 1.8  # sent late by the client itself: its waiting counts all the same
    run = Run((shot(0.0, 0.4), late, shot(1.5, 0.1, 503)), 0.0, 2.0, 0.0, 3)
    assert run.goodput(0.5) == 0.5
    assert run.statuses() == {200: 2, 503: 1}


def test_rate_counts_what_ended_within_the_stretch() -> None:
    run = Run((shot(0.0, 1.0), shot(1.0, 0.9), shot(1.9, 0.5)), 0.0, 2.0, 0.0, 3)
    assert run.per_second == 1.0


def test_damaged_pictures_and_leavers_are_no_failures() -> None:
    shots = (shot(0, 0.1), shot(0, 0.1, 422, kind="damaged"), shot(0, 0.1, 0, kind="leaver"))
    run = Run(shots, 0.0, 1.0, 0.0, 3)
    assert run.statuses() == {200: 1}
    assert run.summary()["requests"] == 3


def test_refusals_without_a_time_to_come_back_are_told() -> None:
    shots = (shot(0, 0.01, 503, retry_after=b"3"), shot(0, 0.02, 429), shot(0, 0.1, 500))
    found = Run(shots, 0.0, 1.0, 0.0, 3).summary()
    assert found["retry_after_s"] == [3, 3]
    assert found["refusals_without_retry_after"] == 1
    assert found["refusal_ms"]["max"] == 20.0


def test_stages_are_read_from_the_header() -> None:
    header = b"decode;dur=3.25, queue;dur=0.5,cache, infer;dur=12"
    assert stages_of(header) == {"decode": 3.25, "queue": 0.5, "infer": 12.0}
