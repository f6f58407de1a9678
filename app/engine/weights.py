"""A model's weights from its safetensors file, as arrays; refuses whatever does not fit.

Without torch, so that a model is opened where there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from app.errors import ModelDamaged
from app.types import ModelSpec

# Names and shapes of the tensors of a net.
Layout = Mapping[str, tuple[int, ...]]

# By safetensors' names. bfloat16, which NumPy does not know, is the upper half of a float32.
_TYPES: Mapping[str, str] = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


def read_weights(spec: ModelSpec, layout: Layout) -> dict[str, NDArray[Any]]:
    """Every tensor of `layout`: float32 where the file has any type of float, else as stored.

    Raises ModelDamaged where the file is unreadable, is not of `spec.weights_sha256`, or lacks,
    exceeds or misshapes a tensor, or holds NaN or infinity.
    """
    stored = _read(spec)
    found = {}
    for name, shape in layout.items():
        if name not in stored:
            raise ModelDamaged(f"weights of {spec.label} lack tensor `{name}` of shape {shape}")
        # One by one, so that they never stand in memory twice.
        entry = stored.pop(name)
        if tuple(entry["shape"]) != shape:
            raise ModelDamaged(
                f"weights of {spec.label}: tensor `{name}` has shape {tuple(entry['shape'])}, "
                f"{spec.architecture} expects {shape}"
            )
        found[name] = _array(spec, name, entry)
    if stored:
        name = min(stored)
        raise ModelDamaged(
            f"weights of {spec.label} hold tensor `{name}` of shape "
            f"{tuple(stored[name]['shape'])}, which {spec.architecture} does not know"
        )
    return found


def _read(spec: ModelSpec) -> dict[str, dict[str, Any]]:
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
        return dict(deserialize(content))  # type: ignore[no-untyped-call]
    except SafetensorError as exc:
        raise ModelDamaged(f"weights of {spec.label} are not safetensors: {exc}") from exc


def _array(spec: ModelSpec, name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    kind = entry["dtype"]
    if kind not in _TYPES:
        raise ModelDamaged(f"weights of {spec.label}: tensor `{name}` has type {kind}")
    array: NDArray[Any] = np.frombuffer(entry["data"], _TYPES[kind]).reshape(entry["shape"])
    if kind == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise ModelDamaged(f"weights of {spec.label}: tensor `{name}` holds NaN or infinity")
    return array
