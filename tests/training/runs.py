"""Tiny runs: a small net on 64 x 64 crops of blobs, in float32 on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from app.training.crops import crop_plan
from app.training.plan import Plan
from tests.training.pictures import write_pairs

QUIET = Console(quiet=True)


def tiny(folder: Path, **changes: Any) -> Plan:
    """A plan on six pictures below `folder`, written if they are not there."""
    data = folder / "data"
    if not data.exists():
        write_pairs(data, [f"p{i}" for i in range(6)])
    values: dict[str, Any] = {
        "data": {str(data): 1.0},
        "out": str(folder / "run"),
        "architecture": "unet-surgical",
        "encoder": "none",
        "steps": 8,
        "batch": 2,
        "rate": 1e-3,
        "warmup": 2,
        "average": 0.5,
        "crop": crop_plan("light", 64),
        "half": False,
        "report": 1,
        "save": 2,
        "score": 4,
        "workers": 0,
        "charts": False,
    }
    return Plan(**{**values, **changes})
