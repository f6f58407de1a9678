"""Agreement, self-test and trials, on a small engine that answers what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.agreement import Tolerance, compare, planes_of
from app.engine.self_test import self_test
from app.engine.trials import batches_that_pay, precision_pays
from app.errors import DeviceOutOfMemory, SelfTestFailed
from app.types import ClassSpec, Inference, ModelSpec, Pixels
from tests.fakes import FakeEngine, model_spec


class Told(FakeEngine):
    """Answers one set of planes or labels for every tile."""

    def __init__(
        self,
        answer: NDArray[Any],
        *,
        precision: str = "float32",
        finite: bool = True,
        spec: ModelSpec | None = None,
    ) -> None:
        super().__init__(spec)
        self.answer, self.precision, self.finite = answer, precision, finite

    def infer(
        self, pixels: Pixels, thresholds: NDArray[np.float32], *, probability: bool = False
    ) -> Inference:
        answer = np.repeat(self.answer[None], len(pixels), axis=0)
        labels = self.spec.task == "multiclass"
        return Inference(
            bits=None if labels else np.packbits(answer, axis=-1),
            labels=answer if labels else None,
            probability=None,
            finite=np.full(len(pixels), self.finite),
        )

    def describe(self) -> Mapping[str, Any]:
        return {"precision": self.precision}


def square(side: int, *, at: int = 20, tile: int = 128) -> NDArray[np.bool_]:
    planes = np.zeros((1, tile, tile), np.bool_)
    planes[0, at : at + side, at : at + side] = True
    return planes


SAMPLE = np.zeros((128, 128, 3), np.uint8)


def test_agreement_is_that_of_the_worst_class() -> None:
    one = np.concatenate([square(10), square(10), np.zeros((1, 128, 128), np.bool_)])
    two = one.copy()
    two[1, 20, 20:25] = False
    found = compare(one, two)
    assert found.changed == 5 / 128**2
    assert found.iou == 0.95
    with pytest.raises(ValueError, match="shapes"):
        compare(one, two[:2])


def test_empty_masks_agree() -> None:
    empty = np.zeros((2, 1, 8, 8), np.bool_)
    assert compare(empty, empty).iou == 1.0


def test_one_pixel_of_a_tiny_object_is_spared() -> None:
    one, two = square(4), square(4)
    two[0, 20, 20] = False
    found = compare(one, two)
    assert Tolerance(changed=0.001, iou=0.999).accepts(found)
    assert not Tolerance(changed=0.001, iou=0.999, spare=0.0).accepts(found)


def test_labels_become_a_plane_per_class() -> None:
    labels = np.array([[[0, 2], [1, 2]]], np.uint8)
    finite = np.array([True])
    planes = planes_of(Inference(bits=None, labels=labels, probability=None, finite=finite), 3)
    assert planes.shape == (1, 3, 2, 2)
    assert planes[0, 2].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_its_own_mask_passes(precision: str) -> None:
    assert self_test(Told(square(60), precision=precision), SAMPLE, square(60)).iou == 1.0


def test_the_mask_may_be_smaller_than_its_padded_tile() -> None:
    expected = square(60)[:, 14:120, 10:100]
    assert self_test(Told(square(60)), SAMPLE, expected, top=14, left=10).iou == 1.0
    with pytest.raises(SelfTestFailed, match="intersection over union"):
        self_test(Told(square(60)), SAMPLE, expected)
    with pytest.raises(SelfTestFailed, match="shape"):
        self_test(Told(square(60)), SAMPLE, expected, top=60, left=10)


def test_another_mask_fails_with_the_numbers() -> None:
    with pytest.raises(SelfTestFailed) as caught:
        self_test(Told(square(60)), SAMPLE, square(60, at=22))
    assert "fake@1" in caught.value.detail
    assert "2.881% of the pixels differ (at most 0.05%)" in caught.value.detail
    assert "intersection over union 0.8770 (at least 0.999)" in caught.value.detail


def test_reduced_precision_has_a_wider_tolerance() -> None:
    almost = square(100)
    almost[0, 20, 20:60] = False
    self_test(Told(almost, precision="bfloat16"), SAMPLE, square(100))
    with pytest.raises(SelfTestFailed):
        self_test(Told(almost), SAMPLE, square(100))


def test_labels_are_compared_class_by_class() -> None:
    classes = tuple(ClassSpec(name, (0, 0, 0)) for name in "abc")
    spec = model_spec(task="multiclass", classes=classes)
    labels = np.zeros((128, 128), np.uint8)
    labels[10:90, 10:90] = 2
    engine = Told(labels, spec=spec)
    assert self_test(engine, SAMPLE, labels).changed == 0.0
    swapped = np.where(labels == 2, 1, 0).astype(np.uint8)
    with pytest.raises(SelfTestFailed):
        self_test(engine, SAMPLE, swapped)


def test_not_a_number_fails() -> None:
    with pytest.raises(SelfTestFailed, match="NaN"):
        self_test(Told(square(60), finite=False), SAMPLE, square(60))


@pytest.mark.parametrize(
    ("answer", "finite", "seconds", "pays"),
    [
        (square(100), True, 0.5, True),
        (square(100), True, 0.95, False),
        (square(100), False, 0.5, False),
        (square(98), True, 0.5, False),
    ],
)
def test_reduced_precision_must_agree_and_be_faster(
    answer: NDArray[np.bool_], finite: bool, seconds: float, pays: bool
) -> None:
    full, reduced = Told(square(100)), Told(answer, finite=finite, precision="bfloat16")
    found, agreement, ratio = precision_pays(
        full, reduced, SAMPLE, seconds=lambda engine, _: 1.0 if engine is full else seconds
    )
    assert found is pays
    assert ratio == seconds
    assert (agreement.changed == 0) == (answer.sum() == 100 * 100)


def test_batches_are_kept_while_they_pay() -> None:
    costs = {1: 1.0, 2: 1.6, 4: 2.4, 8: 4.7, 16: 4.8}
    engine = FakeEngine()
    found = batches_that_pay(engine, (1, 2, 4, 8, 16), seconds=lambda _, x: costs[len(x)])
    assert found == (1, 2, 4)
    assert batches_that_pay(engine, (1, 2), seconds=lambda _, x: float(len(x))) == (1,)


def test_batches_end_where_memory_does() -> None:
    def seconds(_: object, pixels: Pixels) -> float:
        if len(pixels) > 2:
            raise DeviceOutOfMemory("full")
        return 1.0

    assert batches_that_pay(FakeEngine(), (1, 2, 4), seconds=seconds) == (1, 2)
