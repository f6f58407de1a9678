"""What was measured of an architecture on a machine. Weights do not matter to it, so that the next
version of a model is opened without measuring anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.engine.base import Precision


@dataclass(slots=True)
class Timings:
    """`ratio`: seconds of bfloat16 by those of float32. `batches`: sizes that pay, by precision."""

    ratio: float | None = None
    batches: dict[Precision, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> Timings:
        """What a file says; what in it is damaged is measured again."""
        facts = facts or {}
        ratio, batches = facts.get("time_ratio"), facts.get("batches")
        found = cls(ratio if isinstance(ratio, float) and ratio > 0 else None)
        if isinstance(batches, dict):
            for precision in ("float32", "bfloat16"):
                if are_sizes(batches.get(precision)):
                    found.batches[precision] = tuple(batches[precision])
        return found

    def facts(self) -> dict[str, Any]:
        """For a file."""
        return {
            "time_ratio": self.ratio,
            "batches": {name: list(sizes) for name, sizes in self.batches.items()},
        }


def are_sizes(value: Any) -> bool:
    """Whether a file's value can be batch sizes."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(size, int) and size > 0 for size in value)
    )
