"""A model's net as a torch module with its weights in it."""

from __future__ import annotations

import torch
from torch import nn

from app.architectures.base import get
from app.engine.weights import read_weights
from app.types import ModelSpec


def load_net(spec: ModelSpec) -> nn.Module:
    """The net of `spec` in float32 and evaluation mode; weights stored in any float type.

    Raises ModelDamaged as `read_weights`, and EngineError for an unknown architecture or parameter.
    """
    net = get(spec.architecture).build(**{**spec.parameters, "classes": spec.channels})
    expected = net.state_dict()
    arrays = read_weights(spec, {name: tuple(value.shape) for name, value in expected.items()})
    # Copied into the net's own tensors: the arrays need not be writable.
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(torch.tensor(arrays.pop(name)))
    return net.eval().requires_grad_(False)
