"""A model's weights from its safetensors file into its net; refuses whatever does not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from app.architectures.base import get
from app.errors import ModelDamaged
from app.types import ModelSpec


def load_net(spec: ModelSpec) -> nn.Module:
    """The net of `spec` in float32 and evaluation mode; weights stored in any float type.

    Raises ModelDamaged where the file is unreadable, is not of `spec.weights_sha256`, or
    lacks, exceeds or misshapes a tensor, or holds NaN or infinity; EngineError for an unknown
    architecture or parameter.
    """
    net = get(spec.architecture).build(**{**spec.parameters, "classes": spec.channels})
    state = _read(spec)
    expected = net.state_dict()
    for name, value in expected.items():
        if name not in state:
            raise ModelDamaged(
                f"weights of {spec.label} lack tensor `{name}` of shape {tuple(value.shape)}"
            )
        found = state[name]
        if found.shape != value.shape:
            raise ModelDamaged(
                f"weights of {spec.label}: tensor `{name}` has shape {tuple(found.shape)}, "
                f"{spec.architecture} expects {tuple(value.shape)}"
            )
        if not bool(found.isfinite().all()):
            raise ModelDamaged(f"weights of {spec.label}: tensor `{name}` holds NaN or infinity")
    extra = sorted(state.keys() - expected.keys())
    if extra:
        raise ModelDamaged(
            f"weights of {spec.label} hold tensor `{extra[0]}` of shape "
            f"{tuple(state[extra[0]].shape)}, which {spec.architecture} does not know"
        )
    net.load_state_dict({name: state[name].to(expected[name].dtype) for name in expected})
    return net.eval().requires_grad_(False)


def _read(spec: ModelSpec) -> dict[str, torch.Tensor]:
    try:
        content = Path(spec.weights).read_bytes()
    except OSError as exc:
        raise ModelDamaged(f"weights of {spec.label} cannot be read: {exc}") from exc
    # Conversions are kept by digest: one wrong file under a right name would be served for ever.
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.weights_sha256:
        raise ModelDamaged(
            f"weights of {spec.label} have sha256 {digest}, the manifest says {spec.weights_sha256}"
        )
    try:
        state: dict[str, torch.Tensor] = load(content)
    except SafetensorError as exc:
        raise ModelDamaged(f"weights of {spec.label} are not safetensors: {exc}") from exc
    return state
