"""In what numbers a run computes: bfloat16 where the device has it, float32 elsewhere.

A processor without bfloat16 computes it as well, in a loop that nothing makes fast: a step takes
minutes then.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 run on the device's own units."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # The very question that a convolution asks before it takes oneDNN's way or the loop.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def half_of(description: Path) -> bool | None:
    """Whether the run described there is in mixed precision; None where none is."""
    try:
        half = json.loads(description.read_text())["plan"]["half"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return half if isinstance(half, bool) else None
