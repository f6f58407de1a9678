"""The same masks by the plainest means: normalise by hand, the bare module, activate, compare."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.types import ModelSpec, Pixels


def probabilities(net: nn.Module, spec: ModelSpec, pixels: Pixels) -> NDArray[np.float32]:
    """(N, C, H, W) float32, in float32 and NCHW."""
    mean = np.array(spec.mean, np.float32)
    std = np.array(spec.std, np.float32)
    x = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    with torch.inference_mode():
        logits = net(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
        p = logits.softmax(1) if spec.task == "multiclass" else logits.sigmoid()
    found: NDArray[np.float32] = p.numpy()
    return found


def unpacked(bits: NDArray[np.uint8] | None, width: int) -> NDArray[np.bool_]:
    """(..., W) bool of packed rows."""
    assert bits is not None
    return np.unpackbits(bits, axis=-1, count=width).view(np.bool_)


def limits(*values: float) -> NDArray[np.float32]:
    """Thresholds, one per item."""
    return np.array(values, np.float32)
