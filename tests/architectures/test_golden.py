"""Names, counts and numbers of every net are what they were: weights made before stay valid."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.architectures.base import Architecture, get

from . import golden

CASES = golden.cases()


@pytest.mark.parametrize(
    ("architecture", "parameters"), CASES, ids=[golden.name_of(*c) for c in CASES]
)
def test_net_equals_its_golden_file(architecture: Architecture, parameters: dict[str, Any]) -> None:
    expected = json.loads((golden.FOLDER / golden.name_of(architecture, parameters)).read_text())
    assert golden.differences(golden.golden(architecture, parameters), expected) == []


def test_no_golden_file_is_stale() -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == {golden.name_of(*c) for c in CASES}


def test_differences_are_seen() -> None:
    base = {"count": 1, "names": {"a": "1"}, "logits_every_8th": [0.0, 2.0]}
    assert golden.differences(base, base) == []
    assert golden.differences(base, {**base, "count": 2}) == ["count"]
    assert golden.differences(base, {**base, "logits_every_8th": [0.001, 2.0]}) == [
        "logits (by 0.001)"
    ]


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("ternausnet11", {"upsampling": "transposed-3x3"}, 22_927_393),
        ("ternausnet11", {"upsampling": "transposed-4x4"}, 25_364_513),
        ("ternausnet16", {"upsampling": "bilinear"}, 29_306_465),
        ("ternausnet16", {"upsampling": "transposed-4x4"}, 32_202_337),
        # The published counts, less the 513,000 of the classifier that nothing uses.
        ("albunet34", {"upsampling": "bilinear"}, 35_117_897 - 513_000),
        ("albunet34", {"upsampling": "transposed-4x4"}, 38_128_457 - 513_000),
        ("unet-surgical", {}, 7_846_657),
        ("unet", {"upsampling": "transposed-2x2"}, 31_043_521),
        ("unet", {"upsampling": "transposed-2x2", "bottleneck": 512}, 20_554_689),
    ],
)
def test_parameter_count_is_the_published_one(
    name: str, parameters: dict[str, Any], count: int
) -> None:
    layout = get(name).layout(**parameters)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert count == sum(v.numel() for k, v in layout.items() if not k.endswith(buffers))
