"""The plain values that serving needs, as the settings name them."""

from __future__ import annotations

from dataclasses import dataclass

from app.serving.bounds import Bounds
from app.settings import Settings


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


def rules_of(settings: Settings) -> Rules:
    """The plain values that serving needs."""
    return Rules(
        bounds=Bounds(
            max_requests=settings.max_requests,
            max_body_bytes=settings.max_body_bytes,
            max_body_bytes_in_flight=settings.max_body_bytes_in_flight,
            max_pixels_in_flight=settings.max_pixels_in_flight,
        ),
        max_pixels=settings.max_pixels,
        max_decoded_bytes=settings.max_decoded_bytes,
        whole_pixels=settings.whole_pixels,
        tile=settings.tile,
        default_model=settings.default_model,
        host_threads=settings.host_threads,
        tiles_in_flight=settings.tiles_in_flight,
        max_batch=settings.max_batch,
        max_batch_pixels=settings.max_batch_pixels,
        max_hold_s=settings.max_hold_ms / 1000,
        stall_after_s=settings.stall_after_s,
        canary_s=settings.canary_s,
    )
