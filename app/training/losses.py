"""Losses as weighted sums of named terms; the paper's is cross-entropy minus the log of Jaccard.

    objective = Objective({"cross-entropy": 1.0, "log-jaccard": 1.0}, task="binary")
    objective(logits, labels).backward()      # (N, C, H, W) any float, (N, P, H, W) uint8

Everything is computed in float32, whatever the net ran in: in half precision the small terms of the
sums are lost, and an epsilon underflows to 0. Sums run over the whole batch, also where the batch
lies on several processes: `together` adds up what each of them has. Pixels labelled IGNORE take no
part; a class without a labelled pixel in the batch has no Jaccard index to raise, so the terms that
are means over classes leave it out.

Sources: cross-entropy minus log Jaccard, arXiv 1801.05746, section 3; Dice, arXiv 1606.04797;
focal, arXiv 1708.02002; Lovasz, arXiv 1705.08790.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from app.errors import TrainingError
from app.types import Task

# Labels with this value take no part in loss or score.
IGNORE = 255
# Keeps ln J finite where the soft intersection is empty; in units of pixels.
EPSILON = 1e-7
# The exponent of the focal loss that its authors found best.
GAMMA = 2.0

Together = Callable[[torch.Tensor], torch.Tensor]


def alone(sums: torch.Tensor) -> torch.Tensor:
    """What one process has is all there is."""
    return sums


@dataclass(frozen=True, slots=True)
class Batch:
    """Logits with what they should be, all (N, C, H, W); `valid` may have one channel.

    `probability` and `log_probability` are of the class; `log_other` is the logarithm of 1 - p for
    tasks whose classes are independent, None where they exclude each other.
    """

    truth: torch.Tensor
    valid: torch.Tensor
    probability: torch.Tensor
    log_probability: torch.Tensor
    log_other: torch.Tensor | None

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor, task: Task) -> Batch:
        """`labels` (N, P, H, W) uint8: P = C planes of 0 and 1 for `multilabel`, else one plane
        with 0 and 1 (`binary`) or class indices (`multiclass`)."""
        logits = logits.float()
        valid = labels != IGNORE
        if task == "multiclass":
            clean = labels[:, 0].long().masked_fill(~valid[:, 0], 0)
            truth = F.one_hot(clean, logits.shape[1]).permute(0, 3, 1, 2).float()
            log_probability = logits.log_softmax(dim=1)
            return cls(truth, valid, log_probability.exp(), log_probability, None)
        truth = (labels == 1).float()
        return cls(truth, valid, logits.sigmoid(), F.logsigmoid(logits), F.logsigmoid(-logits))

    def pixelwise(self, gamma: float) -> torch.Tensor:
        """(N, C, H, W): -(1 - q)^gamma ln q of each class, q the probability given to the truth."""
        own = self.truth * self.log_probability * _focus(1 - self.probability, gamma)
        if self.log_other is None:
            return -own
        other = (1 - self.truth) * self.log_other * _focus(self.probability, gamma)
        result: torch.Tensor = -own - other
        return result


def _focus(wrongness: torch.Tensor, gamma: float) -> torch.Tensor:
    return wrongness.pow(gamma) if gamma else torch.ones_like(wrongness)


def soft_jaccard(
    probability: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor,
    together: Together = alone,
) -> torch.Tensor:
    """Soft Jaccard index per class: (N, C, H, W) float, same, (N, 1 or C, H, W) -> (C,) float32.

    J = sum(p t) / (sum(p) + sum(t) - sum(p t)), sums over batch and valid pixels.
    """
    both, predicted, true = together(_sums(probability, truth, valid))
    index: torch.Tensor = (both + EPSILON) / (predicted + true - both + EPSILON)
    return index


def _sums(probability: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(3, C): sum(p t), sum(p), sum(t)."""
    p, t = probability.float() * valid, truth.float() * valid
    return torch.stack([(p * t).sum((0, 2, 3)), p.sum((0, 2, 3)), t.sum((0, 2, 3))])


Term = Callable[["Objective", Batch, Together], torch.Tensor]


def _entropy(objective: Objective, batch: Batch, together: Together) -> torch.Tensor:
    return _mean_of_pixels(objective, batch, together, gamma=0.0)


def _focal(objective: Objective, batch: Batch, together: Together) -> torch.Tensor:
    return _mean_of_pixels(objective, batch, together, gamma=objective.gamma)


def _mean_of_pixels(
    objective: Objective, batch: Batch, together: Together, *, gamma: float
) -> torch.Tensor:
    """Weighted mean over valid pixels; weights multiply a class and are not divided out again."""
    loss = batch.pixelwise(gamma)
    if objective.class_weights:
        weights = loss.new_tensor(objective.class_weights).view(1, -1, 1, 1)
        if batch.log_other is not None:
            # Of independent classes a weight is that of presence; absence keeps 1.
            weights = torch.where(batch.truth > 0, weights, torch.ones_like(weights))
        loss = loss * weights
    # Where classes exclude each other one of the C terms of a pixel is not 0.
    places = batch.valid if batch.log_other is None else batch.valid.expand_as(loss)
    total, count = together(torch.stack([(loss * batch.valid).sum(), places.sum().float()]))
    average: torch.Tensor = total / count.clamp(min=1)
    return average


def _minus_log_jaccard(objective: Objective, batch: Batch, together: Together) -> torch.Tensor:
    both, predicted, true = together(_sums(batch.probability, batch.truth, batch.valid))
    index = (both + EPSILON) / (predicted + true - both + EPSILON)
    return _mean_of_present(-index.log(), true)


def _one_minus_dice(objective: Objective, batch: Batch, together: Together) -> torch.Tensor:
    both, predicted, true = together(_sums(batch.probability, batch.truth, batch.valid))
    return _mean_of_present(1 - (2 * both + EPSILON) / (predicted + true + EPSILON), true)


def _mean_of_present(values: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean of (C,) over the classes with truth in the batch; 0 where there is none."""
    present = (true > 0).float()
    return (values * present).sum() / present.sum().clamp(min=1)


def _lovasz(objective: Objective, batch: Batch, together: Together) -> torch.Tensor:
    """Of each picture and present class by itself, then the mean: sorting knows no processes."""
    # Part of the graph even where nothing is there to learn, so that `backward` has its way.
    total = (batch.probability * 0).sum()
    count = batch.probability.new_zeros(())
    valid = batch.valid.expand_as(batch.truth)
    for picture in range(len(batch.truth)):
        for index in range(batch.truth.shape[1]):
            keep = valid[picture, index]
            truth = batch.truth[picture, index][keep]
            if not bool(truth.any()):
                continue
            errors = (truth - batch.probability[picture, index][keep]).abs()
            total = total + lovasz_extension(errors, truth)
            count = count + 1
    total, count = together(torch.stack([total, count]))
    average: torch.Tensor = total / count.clamp(min=1)
    return average


def lovasz_extension(errors: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The Lovasz extension of 1 - Jaccard at (K,) errors in 0..1 against (K,) truth 0 or 1.

    Errors from large to small, each times what the Jaccard loss grows by when that pixel joins the
    wrong ones.
    """
    errors, order = errors.sort(descending=True)
    truth = truth[order]
    both = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    loss = 1 - both / union
    steps = torch.cat([loss[:1], loss[1:] - loss[:-1]])
    return torch.dot(errors, steps)


TERMS: Mapping[str, Term] = {
    "cross-entropy": _entropy,
    "log-jaccard": _minus_log_jaccard,
    "dice": _one_minus_dice,
    "focal": _focal,
    "lovasz": _lovasz,
}
PAPER: Mapping[str, float] = {"cross-entropy": 1.0, "log-jaccard": 1.0}


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of named terms. `class_weights`: one per class, for cross-entropy and focal.

    Raises TrainingError for unknown names and for weights that cannot be.
    """

    terms: Mapping[str, float] = field(default_factory=lambda: dict(PAPER))
    task: Task = "binary"
    class_weights: Sequence[float] = ()
    gamma: float = GAMMA

    def __post_init__(self) -> None:
        unknown = [name for name in self.terms if name not in TERMS]
        if unknown:
            raise TrainingError(f"unknown loss `{unknown[0]}`; known: {', '.join(TERMS)}")
        if not self.terms or any(weight <= 0 for weight in self.terms.values()):
            raise TrainingError("a loss has at least one term, and each weight is above 0")
        if any(weight <= 0 for weight in self.class_weights):
            raise TrainingError("class weights are above 0")

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, *, together: Together = alone
    ) -> torch.Tensor:
        """Scalar float32 of (N, C, H, W) logits and (N, P, H, W) labels; 0 without a valid pixel.

        `together` must add up a tensor over all processes and let gradients through.
        """
        device = logits.device.type
        with torch.autocast(device, enabled=False):
            batch = Batch.of(logits, labels, self.task)
            parts = [
                weight * TERMS[name](self, batch, together) for name, weight in self.terms.items()
            ]
            return torch.stack(parts).sum()


def cross_entropy_minus_log_jaccard(
    logits: torch.Tensor, labels: torch.Tensor, *, jaccard_weight: float = 1.0
) -> torch.Tensor:
    """The paper's loss for (N, H, W) labels: binary with one channel of logits, else exclusive."""
    task: Task = "binary" if logits.shape[1] == 1 else "multiclass"
    terms = {"cross-entropy": 1.0}
    if jaccard_weight:
        terms["log-jaccard"] = jaccard_weight
    return Objective(terms, task=task)(logits, labels.unsqueeze(1))
