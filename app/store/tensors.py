"""The header of a safetensors file, read and checked by hand: no torch, no data loaded.

The format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes, the header's length N as a
little-endian unsigned integer; N bytes of JSON, `{name: {"dtype", "shape", "data_offsets"}}` with
an optional `__metadata__` of strings; then the tensors' bytes, without holes. Everything the format
forbids is refused here, so that what passes can be mapped into memory by any reader.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# A thousand tensors have a header of about 0.1 MB; a larger claim is an attack or no header.
HEADER_LIMIT = 16 * 2**20
TENSOR_LIMIT = 65_536
RANK_LIMIT = 16
CHUNK = 16 * 2**20

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}

# An IEEE number (and bfloat16) is NaN or infinite exactly where its exponent bits are all ones.
_EXPONENT: Mapping[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}

ReadRange = Callable[[int, int], bytes]


class HeaderFault(ValueError):
    """What the header should say (`expected`) and what it says (`found`)."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the header; its bytes lie at [start, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def signature(self) -> str:
        """Type and shape as one word: `F32[64,3,3,3]`; a single number is `F32[]`."""
        return f"{self.dtype}[{','.join(str(side) for side in self.shape)}]"


def read_tensors(read: ReadRange, size: int) -> tuple[Tensor, ...]:
    """The tensors of a file of `size` bytes, in the order of their bytes.

    `read(start, end)` gives the bytes of that range. Raises HeaderFault.
    """
    header, data = _read_header(read, size)
    if len(header) > TENSOR_LIMIT:
        raise HeaderFault(f"at most {TENSOR_LIMIT} tensors", str(len(header)))
    entries = sorted(
        (_entry(name, value, data) for name, value in header.items()),
        key=lambda tensor: (tensor.start, tensor.end),
    )
    at = data
    for tensor in entries:
        if tensor.start != at:
            raise HeaderFault(
                f"tensor `{tensor.name}` to begin at byte {at - data} of the data",
                f"{tensor.start - data}",
            )
        at = tensor.end
    if at != size:
        raise HeaderFault(f"a file of {at} bytes, as its header says", f"{size} bytes")
    return tuple(entries)


def signatures(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    """Name -> type and shape, sorted by name."""
    return {tensor.name: tensor.signature for tensor in sorted(tensors, key=lambda t: t.name)}


def signatures_digest(shapes: Mapping[str, str]) -> str:
    """sha256 (hex) of the names, types and shapes, whatever their order in the file."""
    text = json.dumps(dict(shapes), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def elements(tensors: tuple[Tensor, ...]) -> int:
    """How many numbers the tensors hold (a net's parameters and its running statistics)."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def first_not_finite(read: ReadRange, tensors: tuple[Tensor, ...]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None. Integers are finite."""
    for tensor in tensors:
        if tensor.dtype not in _EXPONENT:
            continue
        kind, exponent = _EXPONENT[tensor.dtype]
        for start in range(tensor.start, tensor.end, CHUNK):
            block = np.frombuffer(read(start, min(start + CHUNK, tensor.end)), dtype=kind)
            if bool(np.any((block & block.dtype.type(exponent)) == exponent)):
                return tensor.name
    return None


def _read_header(read: ReadRange, size: int) -> tuple[dict[str, Any], int]:
    """The header's tensors as JSON, and the byte at which the data begin."""
    if size < 10:
        raise HeaderFault("a safetensors file of at least 10 bytes", f"{size} bytes")
    length = int.from_bytes(read(0, 8), "little")
    if not 2 <= length <= HEADER_LIMIT:
        raise HeaderFault(f"a header length from 2 to {HEADER_LIMIT}", str(length))
    if 8 + length > size:
        raise HeaderFault(f"a header of {length} bytes", f"a file of {size} bytes")
    raw = read(8, 8 + length)
    if raw[:1] != b"{":
        raise HeaderFault("a header that begins with `{`", repr(raw[:1])[1:])
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
    except HeaderFault:
        raise
    except RecursionError as exc:
        raise HeaderFault("a header of plain JSON", "nesting without end") from exc
    except ValueError as exc:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise HeaderFault("a header of JSON in UTF-8", str(exc)) from exc
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderFault("`__metadata__` to map names to strings", _short(metadata))
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise HeaderFault("each name once in the header", f"`{_short(name)}` twice")
        found[name] = value
    return found


def _entry(name: str, value: Any, data: int) -> Tensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(f"`dtype`, `shape` and `data_offsets` for tensor `{name}`", _short(value))
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderFault(
            f"tensor `{name}` of a type that we read ({', '.join(ITEM_BYTES)})", _short(dtype)
        )
    if not _naturals(shape) or len(shape) > RANK_LIMIT:
        raise HeaderFault(
            f"a shape of at most {RANK_LIMIT} whole numbers for tensor `{name}`", _short(shape)
        )
    if not _naturals(offsets) or len(offsets) != 2:
        raise HeaderFault(f"two byte offsets for tensor `{name}`", _short(offsets))
    start, end = offsets
    tensor = Tensor(name, dtype, tuple(shape), data + start, data + end)
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != needed:
        raise HeaderFault(f"{needed} bytes for `{name}` {tensor.signature}", str(end - start))
    return tensor


def _naturals(value: Any) -> bool:
    """A list of whole numbers that are not negative; a bool is an int to Python, and not here."""
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**48 for one in value
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
