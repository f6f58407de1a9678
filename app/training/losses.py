"""The loss of the TernausNet paper (arXiv 1801.05746, section 3): L = H - ln J.

H is the cross-entropy and J the soft Jaccard index. Everything is computed in float32, whatever the
net ran in: in half precision the small terms of the sums are lost. Sums run over the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Labels with this value take no part in loss or score.
IGNORE = 255
# Keeps ln J finite where the soft intersection is empty; in units of pixels.
EPSILON = 1e-7


def soft_jaccard(
    probability: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Soft Jaccard index per class: (N, C, H, W) float, same, (N, 1, H, W) -> (C,) float32.

    J = sum(p t) / (sum(p) + sum(t) - sum(p t)), sums over batch and valid pixels.
    """
    p = probability.float() * valid
    t = truth.float() * valid
    dims = (0, 2, 3)
    intersection = (p * t).sum(dims)
    union = p.sum(dims) + t.sum(dims) - intersection
    return (intersection + EPSILON) / (union + EPSILON)


def cross_entropy_minus_log_jaccard(
    logits: torch.Tensor, labels: torch.Tensor, *, jaccard_weight: float = 1.0
) -> torch.Tensor:
    """The paper's loss: scalar float32.

    `logits` (N, C, H, W); `labels` (N, H, W) integer. With C = 1 a label is 0 or 1 and H is binary
    cross-entropy; with C > 1 a label is a class index, H the softmax cross-entropy and ln J is
    averaged over the classes present in the batch (an absent class has no Jaccard index to raise).
    Pixels labelled IGNORE do not count; a batch without valid pixels gives 0.
    """
    logits = logits.float()
    valid = (labels != IGNORE).unsqueeze(1)
    count = valid.sum().clamp(min=1)
    if logits.shape[1] == 1:
        truth = (labels == 1).unsqueeze(1).float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        entropy = (entropy * valid).sum() / count
        probability = logits.sigmoid()
    else:
        entropy = F.cross_entropy(
            logits, labels.long(), ignore_index=IGNORE, reduction="sum"
        ) / count
        clean = labels.long().masked_fill(labels == IGNORE, 0)
        truth = F.one_hot(clean, logits.shape[1]).permute(0, 3, 1, 2).float()
        probability = logits.softmax(dim=1)
    present = (truth * valid).sum((0, 2, 3)) > 0
    if not bool(present.any()):
        return entropy
    log_jaccard = soft_jaccard(probability, truth, valid)[present].log().mean()
    return entropy - jaccard_weight * log_jaccard
