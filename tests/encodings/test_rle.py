"""COCO run lengths: golden texts, parity with pycocotools, and texts that must not be decoded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from app.encodings import _coco, _runs
from app.encodings.base import get
from app.errors import MalformedRequest
from tests.encodings.examples import (
    MASKS,
    L,
    M,
    P,
    Planes,
    blobs,
    bytes_of,
    label_mask_of,
    mask_of,
    random_masks,
)

GOLDEN: dict[str, tuple[Planes, list[int], str]] = {
    "M": (M, [4, 3, 1, 1, 1, 1, 1, 3, 2, 1, 1, 1], "431N00021NO0"),
    "class 1": (L == 1, [4, 3, 1, 1, 1, 1, 1, 3, 2, 1, 2], "431N00021N0"),
    "class 2": (L == 2, [19, 1], "c01"),
    "complement": (~M, [0, 4, 3, 1, 1, 1, 1, 1, 3, 2, 1, 1, 1], "043MN00021NO0"),
    "empty": (np.zeros_like(M), [20], "d0"),
    "full": (np.ones_like(M), [0, 20], "0d0"),
}


def runs_of(planes: Planes) -> _runs.Runs:
    return _runs.of_bits(np.packbits(planes, axis=1), width=planes.shape[1])


def answer(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data)
    return found


def check_against_pycocotools(planes: Planes) -> None:
    theirs = coco.encode(np.asfortranarray(planes.view(np.uint8)))
    runs = runs_of(planes)
    text = _coco.to_text(runs.counts)
    assert text == theirs["counts"].decode()
    assert runs.area == coco.area(theirs)
    assert (runs.bbox or [0, 0, 0, 0]) == coco.toBbox(theirs).tolist()
    counts = _coco.to_counts(text, pixels=planes.size)
    assert counts.tolist() == runs.counts.tolist()
    height, width = planes.shape
    assert (_runs.paint(counts, height=height, width=width) == planes).all()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_counts(name: str) -> None:
    planes, counts, text = GOLDEN[name]
    assert runs_of(planes).counts.tolist() == counts
    assert _coco.to_text(runs_of(planes).counts) == text
    assert _coco.to_counts(text, pixels=20).tolist() == counts
    assert (_runs.paint(np.array(counts), height=4, width=5) == planes).all()


@pytest.mark.parametrize("name", MASKS)
def test_parity_on_chosen_masks(name: str) -> None:
    check_against_pycocotools(MASKS[name])


@given(planes=random_masks())
@settings(deadline=None, max_examples=200)
def test_parity_on_random_masks(planes: Planes) -> None:
    check_against_pycocotools(planes)


@pytest.mark.parametrize("shape", [(1500, 1111), (1, 300_000), (300_000, 1), (70_000, 9)])
def test_parity_on_large_masks(shape: tuple[int, int]) -> None:
    planes = np.zeros(shape, np.bool_)
    planes.ravel()[np.random.default_rng(0).integers(0, planes.size, 999)] = True
    check_against_pycocotools(planes)
    check_against_pycocotools(~planes)


def test_parity_on_a_large_mask_of_blobs() -> None:
    check_against_pycocotools(blobs(900, 1203))


@given(numbers=st.lists(st.integers(0, 2**30), min_size=1, max_size=30))
@settings(deadline=None)
def test_counts_of_any_size_come_back(numbers: list[int]) -> None:
    counts = np.array(numbers, np.int64)
    text = _coco.to_text(counts)
    assert _coco.to_counts(text, pixels=sum(numbers)).tolist() == numbers
    assert not set(text.encode()) - set(range(48, 112))


@given(labels=random_masks(), more=random_masks())
@settings(deadline=None, max_examples=60)
def test_label_runs_are_the_runs_of_each_class(labels: Planes, more: Planes) -> None:
    height, width = (min(pair) for pair in zip(labels.shape, more.shape, strict=True))
    ids = labels[:height, :width].astype(np.uint8) + np.uint8(2) * more[:height, :width]
    for index, runs in enumerate(_runs.of_labels(ids, classes=5)):
        alone = runs_of(ids == index)
        assert runs.counts.tolist() == alone.counts.tolist()
        assert runs.bbox == alone.bbox


def test_answer_for_the_example() -> None:
    data = get("rle").encode(mask_of(M, probability=bytes_of(P)[None]))
    assert data == (
        b'{"model":"example","version":3,"size":[4,5],"threshold":0.5,"classes":[{"name":"class 0",'
        b'"area":10,"bbox":[1,0,4,4],"mean_score":0.78,'
        b'"rle":{"size":[4,5],"counts":"431N00021NO0"}}]}'
    )


def test_answer_for_a_label_map_lists_the_foreground() -> None:
    found = answer(get("rle").encode(label_mask_of(L, classes=4)))
    assert found["threshold"] is None
    assert [each["name"] for each in found["classes"]] == ["class 1", "class 2", "class 3"]
    assert [each["area"] for each in found["classes"]] == [9, 1, 0]
    assert [each["bbox"] for each in found["classes"]] == [[1, 0, 4, 3], [4, 3, 1, 1], None]
    assert [each["mean_score"] for each in found["classes"]] == [0.8, 0.8, None]
    counts = [each["rle"]["counts"] for each in found["classes"]]
    assert counts == ["431N00021N0", "c01", "d0"]


# pycocotools 2.0.11 does not yet know the `copy` keyword that NumPy 2 asks for.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_decodes_the_answer() -> None:
    planes = np.stack([MASKS["blobs"], ~MASKS["blobs"]])
    found = answer(get("rle").encode(mask_of(planes, "multilabel")))
    for entry, plane in zip(found["classes"], planes, strict=True):
        assert (coco.decode(entry["rle"]) == plane).all()


def test_backslash_of_the_alphabet_survives_json() -> None:
    counts = np.array([12 + 16 * 32, 1], np.int64)  # lowest five bits 01100, more follow: `\`
    assert "\\" in _coco.to_text(counts)
    planes = np.zeros((1, 525), np.bool_)
    planes[0, -1] = True
    data = get("rle").encode(mask_of(planes))
    assert b"\\\\" in data
    assert (get("rle").decode(data) == planes).all()


def test_mean_score_of_a_large_bright_mask_does_not_overflow() -> None:
    planes = np.ones((4200, 4200), np.bool_)  # 255 times its pixels is more than 32 bits hold
    probability = np.full((1, 4200, 4200), 255, np.uint8)
    data = get("rle").encode(mask_of(planes, probability=probability))
    assert answer(data)["classes"][0]["mean_score"] == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("431N00021N", "truncated|sum"),
        ("431N00021NOP", "truncated"),
        ("P", "truncated"),
        ("431N00021NO1", "sum"),
        ("c0", "sum"),
        ("O", "negative"),
        ("d0O1", "negative"),
        ("43 N00021NO0", "outside"),
        ("43pN00021NO0", "outside"),
        ("431N00021NO0\n", "outside"),
        ("431N00021NOé", "ASCII"),
        ("PPPPPPPPPP0", "too many"),
        ("ooooooooooooooooooooo0", "too many"),
    ],
)
def test_bad_counts_are_refused(text: str, says: str) -> None:
    with pytest.raises(MalformedRequest, match=says):
        _coco.to_counts(text, pixels=20)


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_text_is_refused_or_fills_the_mask(text: str) -> None:
    try:
        counts = _coco.to_counts(text, pixels=20)
    except MalformedRequest:
        return
    assert counts.min() >= 0
    assert counts.sum() == 20
    assert _runs.paint(counts, height=4, width=5).shape == (4, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [5, 4]},
        {"size": [4, 5, 1]},
        {"size": [4.0, 5]},
        {"size": [True, 20]},
        {"size": None},
        {"classes": []},
        {"classes": [{}]},
        {"classes": None},
    ],
)
def test_answer_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    found = answer(get("rle").encode(mask_of(M)))
    with pytest.raises(MalformedRequest):
        get("rle").decode(json.dumps({**found, **change}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"area": 9},
        {"bbox": [0, 0, 5, 4]},
        {"bbox": None},
        {"rle": {"size": [5, 4], "counts": "431N00021NO0"}},
        {"rle": {"size": [4, 5], "counts": "d0"}},
        {"rle": {"size": [4, 5], "counts": [20]}},
        {"rle": {"size": [4, 5]}},
        {"rle": "d0"},
    ],
)
def test_class_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    found = answer(get("rle").encode(mask_of(M)))
    found["classes"][0].update(change)
    with pytest.raises(MalformedRequest):
        get("rle").decode(json.dumps(found).encode())
