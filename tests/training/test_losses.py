"""Losses against plain numpy and scikit-learn."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score, log_loss

from app.errors import TrainingError
from app.training.losses import (
    EPSILON,
    IGNORE,
    TERMS,
    Batch,
    Objective,
    cross_entropy_minus_log_jaccard,
    lovasz_extension,
    soft_jaccard,
)
from app.types import Task

Array = NDArray[np.float64]
SHAPES: dict[Task, tuple[int, int]] = {"binary": (1, 1), "multiclass": (4, 1), "multilabel": (3, 3)}


def drawn(task: Task, *, seed: int = 0, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, C, 6, 5) and labels (2, P, 6, 5) with some IGNORE."""
    random = np.random.default_rng(seed)
    channels, planes = SHAPES[task]
    logits = random.normal(0, 2, (2, channels, 6, 5)).astype(np.float32)
    top = channels if task == "multiclass" else 2
    labels = random.integers(0, top, (2, planes, 6, 5)).astype(np.uint8)
    labels[random.random(labels.shape) < ignored] = IGNORE
    return torch.from_numpy(logits), torch.from_numpy(labels)


def plain(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> tuple[Array, Array, Array]:
    """Probability, truth and validity (C, K) in float64, by numpy alone."""
    x = logits.double().numpy()
    y = labels.numpy()
    valid = np.broadcast_to(y != IGNORE, x.shape)
    if task == "multiclass":
        e = np.exp(x - x.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        truth = y == np.arange(x.shape[1])[None, :, None, None]
    else:
        p, truth = 1 / (1 + np.exp(-x)), y == 1
    flat = [a.swapaxes(0, 1).reshape(x.shape[1], -1).astype(np.float64) for a in (p, truth, valid)]
    return flat[0], flat[1], flat[2]


def plain_jaccard(p: Array, t: Array, v: Array) -> Array:
    both = (p * t * v).sum(1)
    found: Array = (both + EPSILON) / ((p * v).sum(1) + (t * v).sum(1) - both + EPSILON)
    return found


@pytest.mark.parametrize("task", SHAPES)
def test_cross_entropy_is_that_of_scikit_learn(task: Task) -> None:
    logits, labels = drawn(task)
    p, t, v = plain(logits, labels, task)
    if task == "multiclass":
        keep = v[0] > 0
        expected = log_loss(t.argmax(0)[keep], p.T[keep], labels=range(len(p)))
    else:
        keep = v.ravel() > 0
        expected = log_loss(t.ravel()[keep], p.ravel()[keep])
    found = Objective({"cross-entropy": 1.0}, task)(logits, labels)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", SHAPES)
def test_log_jaccard_is_that_of_numpy(task: Task) -> None:
    logits, labels = drawn(task)
    p, t, v = plain(logits, labels, task)
    expected = -np.log(plain_jaccard(p, t, v)).mean()
    found = Objective({"log-jaccard": 1.0}, task)(logits, labels)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", SHAPES)
def test_dice_and_focal_are_those_of_numpy(task: Task) -> None:
    logits, labels = drawn(task)
    p, t, v = plain(logits, labels, task)
    dice = (1 - 2 * (p * t * v).sum(1) / ((p * v).sum(1) + (t * v).sum(1))).mean()
    q = p * t + (1 - p) * (1 - t)
    terms = -((1 - q) ** 2) * np.log(q) * v * (t if task == "multiclass" else 1)
    focal = terms.sum() / (v[0].sum() if task == "multiclass" else v.sum())
    assert float(Objective({"dice": 1.0}, task)(logits, labels)) == pytest.approx(dice, rel=1e-5)
    assert float(Objective({"focal": 1.0}, task)(logits, labels)) == pytest.approx(focal, rel=1e-5)


def test_soft_jaccard_of_hard_masks_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    found, truth = random.random((2, 1, 1, 9, 9)) > 0.5
    index = soft_jaccard(
        torch.from_numpy(found).float(), torch.from_numpy(truth).float(), torch.ones(1, 1, 9, 9)
    )
    assert float(index[0]) == pytest.approx(jaccard_score(truth.ravel(), found.ravel()), rel=1e-6)


def test_lovasz_of_hard_errors_is_the_jaccard_loss() -> None:
    random = np.random.default_rng(2)
    for _ in range(5):
        truth, found = random.random((2, 40)) > 0.4
        loss = lovasz_extension(
            torch.from_numpy(truth != found).float(), torch.from_numpy(truth).float()
        )
        assert float(loss.detach()) == pytest.approx(1 - jaccard_score(truth, found), abs=1e-6)


def test_lovasz_is_the_largest_over_all_orders() -> None:
    # Of a submodular set function the extension is the maximum over orders of the telescoped sum.
    errors, truth = [0.9, 0.2, 0.6, 0.4], [1.0, 0.0, 0.0, 1.0]

    def jaccard_loss(wrong: set[int]) -> float:
        union = {i for i in range(4) if truth[i]} | wrong
        both = {i for i in range(4) if truth[i]} - wrong
        return 1 - len(both) / len(union)

    def telescoped(order: tuple[int, ...]) -> float:
        total = 0.0
        for place in range(4):
            more = jaccard_loss(set(order[: place + 1])) - jaccard_loss(set(order[:place]))
            total += errors[order[place]] * more
        return total

    expected = max(telescoped(order) for order in permutations(range(4)))
    found = lovasz_extension(torch.tensor(errors), torch.tensor(truth))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_paper_loss_is_the_sum_of_its_terms() -> None:
    logits, labels = drawn("binary")
    parts = [
        float(Objective({name: 1.0})(logits, labels)) for name in ("cross-entropy", "log-jaccard")
    ]
    found = cross_entropy_minus_log_jaccard(logits, labels[:, 0], jaccard_weight=0.3)
    assert float(found) == pytest.approx(parts[0] + 0.3 * parts[1], rel=1e-6)


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("name", TERMS)
def test_ignored_pixels_change_neither_loss_nor_gradient(task: Task, name: str) -> None:
    logits, labels = drawn(task)
    objective = Objective({name: 1.0}, task)
    odd = logits.clone()
    odd[(labels == IGNORE).expand_as(odd)] = 7.0
    first, second = logits.requires_grad_(), odd.requires_grad_()
    loss = objective(first, labels)
    assert float(loss.detach()) == pytest.approx(
        float(objective(second.detach(), labels)), rel=1e-6
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert not first.grad[(labels == IGNORE).expand_as(first)].any()
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("name", TERMS)
def test_batch_without_a_labelled_pixel_costs_nothing(task: Task, name: str) -> None:
    logits, labels = drawn(task, ignored=1.1)
    loss = Objective({name: 1.0}, task)(logits.requires_grad_(), labels)
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("name", ["log-jaccard", "dice", "lovasz"])
def test_absent_class_is_left_out_of_the_mean(name: str) -> None:
    logits, labels = drawn("multiclass", ignored=0.0)
    labels[labels == 3] = 0
    found = Objective({name: 1.0}, "multiclass")(logits, labels)
    batch = Batch.of(logits, labels, "multiclass")
    assert bool((batch.truth[:, 3] == 0).all())
    # Were the absent class in the mean, -ln(1e-7 / sum p) would add more than 3.
    p, t, v = plain(logits, labels, "multiclass")
    if name == "log-jaccard":
        assert float(found) == pytest.approx(-np.log(plain_jaccard(p, t, v))[:3].mean(), rel=1e-5)
    assert float(found) < 4


@pytest.mark.parametrize("name", TERMS)
def test_empty_masks_give_finite_loss_and_gradient(name: str) -> None:
    logits = torch.full((1, 1, 8, 8), 30.0, requires_grad=True)
    loss = Objective({name: 1.0})(logits, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TERMS)
def test_half_precision_logits_are_reduced_in_float32(name: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(3)
    # 512 x 512 pixels: a sum in float16 would overflow, one in bfloat16 would stop at 256.
    logits = torch.from_numpy(random.normal(0, 1, (1, 1, 512, 512))).to(dtype)
    labels = torch.from_numpy(random.integers(0, 2, (1, 1, 512, 512)).astype(np.uint8))
    objective = Objective({name: 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(logits, labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(objective(logits.float(), labels)), rel=1e-6)


def test_loss_of_a_right_answer_is_near_zero_and_less_than_of_a_wrong_one() -> None:
    for task in SHAPES:
        _, labels = drawn(task, ignored=0.0)
        batch = Batch.of(torch.zeros(2, SHAPES[task][0], 6, 5), labels, task)
        right = (batch.truth * 2 - 1) * 30
        for name in TERMS:
            objective = Objective({name: 1.0}, task)
            assert float(objective(right, labels)) == pytest.approx(0.0, abs=1e-4), (task, name)
            assert float(objective(-right, labels)) > 0.3, (task, name)


def test_class_weights_multiply_their_class() -> None:
    logits, labels = drawn("multiclass", ignored=0.0)
    p, t, _ = plain(logits, labels, "multiclass")
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    expected = -(weights[:, None] * t * np.log(p)).sum() / t.sum()
    found = Objective({"cross-entropy": 1.0}, "multiclass", tuple(weights))(logits, labels)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    for task in SHAPES:
        logits, labels = drawn(task, seed=4)
        objective = Objective({"cross-entropy": 1.0, "log-jaccard": 0.5, "dice": 1.0}, task)
        x = logits.requires_grad_()
        objective(x, labels).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        step = 1e-2
        with torch.no_grad():
            ahead = float(objective(x + step * direction, labels))
            behind = float(objective(x - step * direction, labels))
        slope = float((x.grad * direction).sum())
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=2e-2, abs=1e-3)


def test_unknown_terms_and_impossible_weights_are_refused() -> None:
    with pytest.raises(TrainingError, match="known: cross-entropy, log-jaccard"):
        Objective({"hinge": 1.0})
    with pytest.raises(TrainingError, match="above 0"):
        Objective({"dice": 0.0})
    with pytest.raises(TrainingError, match="class weights"):
        Objective(class_weights=(1.0, -1.0))
