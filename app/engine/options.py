"""What the caller may choose of an engine; everything that is not chosen is found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.engine.base import Precision
from app.errors import EngineError

BACKENDS = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Where and how a model is placed.

    `device`: `auto`, `cpu`, `cuda` or `cuda:N`. `backend`: `auto`, `openvino` or `torch`.
    `precision`: `auto` takes bfloat16 where it is faster and the masks agree with float32 on the
    model's sample; `int8` the same of int8, with a wider tolerance, and else what `auto` takes; any
    other named precision is taken as it is. `threads`: of the CPU, 0 for all that the
    process may use. `batch_sizes`: empty to find them by measurement. `cache_dir`: where
    conversions and findings are kept, None to keep nothing. Raises EngineError for a value that
    cannot be.
    """

    device: str = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto"] | Precision = "auto"
    threads: int = 0
    batch_sizes: tuple[int, ...] = ()
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise EngineError(
                f"unknown `device` {self.device!r}; known: auto, cpu, cuda, cuda:0, cuda:1, ..."
            )
        if self.backend not in BACKENDS:
            raise EngineError(f"unknown `backend` {self.backend!r}; known: {', '.join(BACKENDS)}")
        if self.precision not in PRECISIONS:
            raise EngineError(
                f"unknown `precision` {self.precision!r}; known: {', '.join(PRECISIONS)}"
            )
        if self.threads < 0:
            raise EngineError(f"`threads` must be 0 (all) or more, not {self.threads}")
        sizes = self.batch_sizes
        if sizes and (min(sizes) < 1 or list(sizes) != sorted(set(sizes))):
            raise EngineError(f"`batch_sizes` must ascend from 1 or more, not {sizes}")
