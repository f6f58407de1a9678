"""Laws that hold for every format of the folder, the ones added later too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from app.encodings.base import DEFAULT, Decoded, Encoding, get, register, registry
from app.errors import BadParameter, MalformedRequest
from app.types import Mask
from tests.encodings.examples import MASKS, L, M, Planes, label_mask_of, mask_of, random_masks

EVERY = pytest.mark.parametrize("encoding", registry().values(), ids=list(registry()))
NAMES = ["kaggle", "npy", "png", "png8", "probability", "rle"]


def check_decoded(decoded: Decoded, mask: Mask) -> None:
    """Hold what came back against the mask; its dtype and dimensions say what it is."""
    found: NDArray[np.generic] = decoded
    expected: NDArray[np.generic]
    if found.ndim == 3 and found.dtype == np.uint8:
        assert mask.probability is not None
        expected = mask.probability
    elif found.ndim == 3:
        expected = np.stack([mask.plane(index) for index in mask.foreground])
    elif mask.labels is not None:
        expected = mask.labels
    else:
        expected = mask.plane(0) * np.uint8(255)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def check_round_trip(encoding: Encoding, mask: Mask) -> None:
    data = encoding.encode(mask)
    assert type(data) is bytes
    assert data == encoding.encode(mask)
    shape = (mask.height, mask.width)
    check_decoded(encoding.decode(data, shape), mask)
    if not encoding.needs_shape:
        check_decoded(encoding.decode(data), mask)


def test_registry_is_the_folder() -> None:
    assert list(registry()) == NAMES
    assert DEFAULT in registry()


def test_registry_does_not_change() -> None:
    with pytest.raises(TypeError):
        registry()["x"] = get("png")  # type: ignore[index]
    with pytest.raises(ValueError, match="registered twice"):
        register(get("png"))


def test_unknown_format_lists_the_known() -> None:
    with pytest.raises(BadParameter) as caught:
        get("jpeg")
    assert caught.value.detail == f"unknown format `jpeg`; known: {', '.join(NAMES)}"


@EVERY
def test_contract(encoding: Encoding) -> None:
    assert encoding.title
    assert "/" in encoding.media_type
    assert encoding.extension.isalnum()
    assert encoding.expresses("binary", classes=1)


@EVERY
@pytest.mark.parametrize("name", MASKS)
def test_binary_comes_back(encoding: Encoding, name: str) -> None:
    check_round_trip(encoding, mask_of(MASKS[name]))


@EVERY
@given(planes=random_masks())
@settings(deadline=None, max_examples=25)
def test_random_binary_comes_back(encoding: Encoding, planes: Planes) -> None:
    check_round_trip(encoding, mask_of(planes))


@EVERY
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 16, 17, 256])
@pytest.mark.parametrize("shape", [(4, 5), (9, 16), (1, 1), (1, 7), (6, 1)])
def test_multiclass_comes_back_or_is_refused(
    encoding: Encoding, classes: int, shape: tuple[int, int]
) -> None:
    labels = np.random.default_rng(classes).integers(0, classes, shape, np.uint8)
    labels[-1, -1] = classes - 1
    mask = label_mask_of(labels, classes=classes)
    if encoding.expresses("multiclass", classes=classes):
        check_round_trip(encoding, mask)
    else:
        with pytest.raises(BadParameter, match=f"`{encoding.name}` cannot hold a multiclass mask"):
            encoding.encode(mask)


@EVERY
@pytest.mark.parametrize("classes", [1, 3])
def test_multilabel_comes_back_or_is_refused(encoding: Encoding, classes: int) -> None:
    planes = np.stack([M, ~M, np.ones_like(M)])[:classes]
    mask = mask_of(planes, "multilabel")
    if encoding.expresses("multilabel", classes=classes):
        check_round_trip(encoding, mask)
        return
    with pytest.raises(BadParameter) as caught:
        encoding.encode(mask)
    assert caught.value.detail == (
        f"format `{encoding.name}` cannot hold a multilabel mask of 3 classes; "
        "formats that can: kaggle, npy, rle"
    )


def test_probability_of_several_classes_names_npy() -> None:
    with pytest.raises(BadParameter, match=r"formats that can: kaggle, npy, png, png8, rle$"):
        get("probability").require("multiclass", classes=3)


@EVERY
def test_probability_is_used_only_where_it_is_declared(encoding: Encoding) -> None:
    mask = replace(mask_of(M), probability=None)
    if encoding.needs_probability:
        with pytest.raises(ValueError, match="needs a mask with probability"):
            encoding.encode(mask)
    else:
        assert encoding.encode(mask) == encoding.encode(mask_of(M))


@EVERY
def test_mask_that_breaks_its_contract_is_not_written(encoding: Encoding) -> None:
    mask = mask_of(M)
    assert mask.bits is not None
    for broken, says in (
        (replace(mask, width=17), "expected uint8"),
        (replace(mask, height=0), "pixels and"),
        (replace(mask, bits=mask.bits.astype(np.int64)), "int64"),
        (replace(mask, bits=None), "no pixels"),
        (replace(mask, labels=L), "another task"),
        (replace(mask, probability=np.zeros((1, 5, 4), np.uint8)), "`probability`"),
    ):
        with pytest.raises(ValueError, match=says):
            encoding.encode(broken)


def test_label_without_a_class_is_not_written() -> None:
    with pytest.raises(ValueError, match="no class"):
        get("png").encode(label_mask_of(L, classes=2))


@EVERY
def test_encoding_leaves_the_mask_alone(encoding: Encoding) -> None:
    mask = mask_of(MASKS["blobs"])
    for array in (mask.bits, mask.probability):
        assert array is not None
        array.setflags(write=False)
    encoding.encode(mask)


@EVERY
def test_threads_agree(encoding: Encoding) -> None:
    mask = mask_of(MASKS["blobs"])
    with ThreadPoolExecutor(4) as threads:
        answers = set(threads.map(lambda _: encoding.encode(mask), range(16)))
    assert len(answers) == 1


@EVERY
def test_strided_arrays_are_written_right(encoding: Encoding) -> None:
    planes = np.stack([MASKS["blobs"], ~MASKS["blobs"]])
    whole = mask_of(planes, "multilabel")
    assert whole.bits is not None
    assert whole.probability is not None
    wide = np.repeat(np.repeat(whole.bits[1:], 2, axis=1), 2, axis=2)[:, ::2, ::2]
    deep = np.repeat(whole.probability[1:], 2, axis=2)[:, :, ::2]
    check_round_trip(encoding, replace(mask_of(planes[1]), bits=wide, probability=deep))


@EVERY
@pytest.mark.parametrize("garbage", [b"", b"\0", b"garbage", b"\xff" * 99, b"[" * 99999, b"{}"])
def test_garbage_is_refused(encoding: Encoding, garbage: bytes) -> None:
    with pytest.raises(MalformedRequest):
        encoding.decode(garbage, (4, 5))


@EVERY
def test_every_truncation_is_refused(encoding: Encoding) -> None:
    data = encoding.encode(mask_of(M))
    short = [data[:length] for length in range(len(data))]
    if encoding.name == "kaggle":  # from its last comma on, a shorter text is another whole one
        short = short[: data.rindex(b",") + 1]
    for each in short:
        with pytest.raises(MalformedRequest):
            encoding.decode(each, (4, 5))


@EVERY
def test_size_is_held_against_what_the_caller_expects(encoding: Encoding) -> None:
    data = encoding.encode(mask_of(M))
    for shape in ((5, 4), (3, 5), (0, 5), (-4, -5), (1 << 20, 1 << 20)):
        if encoding.needs_shape and shape == (5, 4):
            continue  # nothing in the bytes speaks against it
        with pytest.raises(MalformedRequest):
            encoding.decode(data, shape)


@EVERY
def test_shape_is_asked_for_where_the_bytes_do_not_hold_it(encoding: Encoding) -> None:
    data = encoding.encode(mask_of(M))
    if encoding.needs_shape:
        with pytest.raises(MalformedRequest, match="give the shape"):
            encoding.decode(data)
    else:
        assert encoding.decode(data).shape[-2:] == (4, 5)
