"""A safetensors header by hand agrees with the library's, and refuses what the format forbids."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.store.tensors import (
    HEADER_LIMIT,
    TENSOR_LIMIT,
    HeaderFault,
    Tensor,
    elements,
    first_not_finite,
    read_tensors,
    signatures,
    signatures_digest,
)
from tests.store.makers import tensors as net


def parse(raw: bytes) -> tuple[Tensor, ...]:
    return read_tensors(lambda start, end: raw[start:end], len(raw))


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=6,
    )
)
def test_every_file_of_the_library_is_read_as_the_library_reads_it(
    shapes: dict[str, tuple[str, list[int]]],
) -> None:
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}
    raw = save(arrays, metadata={"made": "here"})
    found = {tensor.name: tensor.shape for tensor in parse(raw)}
    assert found == {name: array.shape for name, array in load(raw).items()}
    assert elements(parse(raw)) == sum(array.size for array in arrays.values())


@given(cut=st.integers(min_value=0))
def test_no_cut_file_is_accepted(cut: int) -> None:
    raw = save(net())
    with pytest.raises(HeaderFault):
        parse(raw[: cut % len(raw)])


@given(st.binary(max_size=200))
def test_noise_is_a_fault_and_never_another_error(noise: bytes) -> None:
    with contextlib.suppress(HeaderFault):
        parse(noise)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "at least 10 bytes"),
        (b"\xff" * 20, f"a header length from 2 to {HEADER_LIMIT}"),
        (file(b"{}")[:9] + b"", "at least 10 bytes"),
        ((90).to_bytes(8, "little") + b"{}", "a header of 90 bytes"),
        (file(b"[]"), "begins with `{`"),
        (file(b"{]"), "JSON in UTF-8"),
        (file(b'{"\xff": 1}'), "JSON in UTF-8"),
        (file(b'{"a":' * 100_000), "plain JSON"),
        (file(b'{"a": 1, "a": 2}'), "each name once"),
        (file({"__metadata__": {"a": 1}}), "names to strings"),
        (file({"a": 1}), "`dtype`, `shape` and `data_offsets` for tensor `a`"),
        (file({"a": entry() | {"more": 1}}, b"0000"), "`dtype`, `shape` and `data_offsets`"),
        (file({"a": entry(dtype="F31")}, b"0000"), "tensor `a` of a type that we read (BOOL"),
        (file({"a": entry(dtype=["F32"])}, b"0000"), "of a type that we read"),
        (file({"a": entry(shape=[-1])}, b"0000"), "whole numbers for tensor `a`"),
        (file({"a": entry(shape=[True])}, b"0000"), "whole numbers for tensor `a`"),
        (file({"a": entry(shape=[2**60])}, b"0000"), "whole numbers for tensor `a`"),
        (file({"a": entry(offsets=[0])}, b"0000"), "two byte offsets for tensor `a`"),
        (file({"a": entry(shape=[2])}, b"0000"), "8 bytes for `a` F32[2]"),
        (file({"a": entry(offsets=[4, 0])}, b"0000"), "4 bytes for `a`"),
        (file({"a": entry(offsets=[4, 8])}, b"00000000"), "tensor `a` to begin at byte 0"),
        (
            file({"a": entry(), "b": entry(offsets=[2, 6])}, b"000000"),
            "tensor `b` to begin at byte 4",
        ),
        (file({"a": entry()}, b"00000"), "as its header says"),
        (file({"a": entry()}, b"000"), "as its header says"),
    ],
)
def test_what_the_format_forbids_is_named(raw: bytes, expected: str) -> None:
    with pytest.raises(HeaderFault) as caught:
        parse(raw)
    assert expected in caught.value.expected


@pytest.mark.parametrize("dtype", [None, "F32"])
def test_library_agrees_that_holes_are_forbidden(dtype: str | None) -> None:
    with pytest.raises(SafetensorError):
        load(file({"a": entry(dtype=dtype, offsets=[4, 8])}, b"00000000"))


def test_too_many_tensors_are_refused() -> None:
    empty = json.dumps(entry(shape=[0], offsets=[0, 0]))
    header = ",".join(f'"{i}":{empty}' for i in range(TENSOR_LIMIT + 1))
    with pytest.raises(HeaderFault, match=f"at most {TENSOR_LIMIT} tensors"):
        parse(file(f"{{{header}}}".encode()))


def test_digest_is_of_names_types_and_shapes_only() -> None:
    shapes = signatures(parse(save(net())))
    assert shapes["encoder.0.weight"] == "F32[4,3,3,3]"
    other = signatures(parse(save({name: array * 2 for name, array in net().items()})))
    assert signatures_digest(shapes) == signatures_digest(other)
    assert signatures_digest(shapes) == signatures_digest(dict(reversed(shapes.items())))
    assert signatures_digest(shapes) != signatures_digest(shapes | {"final.weight": "F32[4,1]"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_first_tensor_that_is_not_finite_is_named(dtype: str, bad: float) -> None:
    arrays = {"a": np.ones(9, dtype), "b": np.ones(9, dtype), "c": np.full(3, -1, "i4")}
    arrays["b"][8] = bad
    raw = save(arrays)
    assert first_not_finite(lambda start, end: raw[start:end], parse(raw)) == "b"


def test_largest_finite_numbers_are_finite() -> None:
    raw = save({kind: np.array([np.finfo(kind).max, -1], kind) for kind in ("f2", "f4", "f8")})
    assert first_not_finite(lambda start, end: raw[start:end], parse(raw)) is None


@pytest.mark.parametrize(("word", "name"), [(0x7F80, "a"), (0xFFC1, "a"), (0x7F7F, None)])
def test_bfloat16_is_looked_into_without_the_type(word: int, name: str | None) -> None:
    raw = file({"a": entry("BF16", [2], [0, 4])}, b"\0\0" + word.to_bytes(2, "little"))
    assert first_not_finite(lambda start, end: raw[start:end], parse(raw)) == name
