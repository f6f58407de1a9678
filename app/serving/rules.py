"""The plain values that serving needs, as the settings name them."""

from __future__ import annotations

from dataclasses import dataclass

from app.serving.admission import Bounds


@dataclass(frozen=True, slots=True)
class Rules:
    """How much, how large, how long. Nothing here is read from the environment."""

    bounds: Bounds
    max_pixels: int
    max_decoded_bytes: int
    whole_pixels: int
    tile: int
    default_model: str = ""
    host_threads: int = 0
    tiles_in_flight: int = 4
    max_batch: int = 32
    max_batch_pixels: int = 8_388_608
    max_hold_s: float = 0.002
    stall_after_s: float = 60.0
    canary_s: float = 30.0
