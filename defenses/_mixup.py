"""Mixup batches: convex combinations of records and of their targets."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["mixed"]


def mixed(
    x: Tensor, targets: Tensor, generator: torch.Generator, *, alpha: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Mix every record of a batch with another one of it, in one proportion for the batch.

    With soft targets, cross-entropy is linear in them: the loss of the mixed row is exactly
    lambda CE(z, y_i) + (1 - lambda) CE(z, y_j).

    Args:
        x: [B, ...] records. Not modified.
        targets: [B] classes, or soft labels [B, C]. Not modified.
        generator: on the CPU; decides who is mixed with whom, and how much.
        alpha: lambda ~ Beta(alpha, alpha), above 0.
        num_classes: C.

    Returns:
        Records [B, ...] and soft labels [B, C], rows sum to 1.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, section 2.
    """
    # torch draws a Beta from its global generator only, which is not ours to advance.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(rng.beta(alpha, alpha))
    other_B = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    target_BC = targets
    if targets.ndim == 1:
        target_BC = F.one_hot(targets, num_classes).to(x.dtype)
    return (
        share * x + (1 - share) * x[other_B],
        share * target_BC + (1 - share) * target_BC[other_B],
    )
