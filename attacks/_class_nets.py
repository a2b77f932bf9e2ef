"""A small net for each class that tells members by their confidences, all trained at once."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["Answers", "ClassNets", "Recipe", "division", "trained"]

# Of a net's records, the share that chooses its step and is not descended on.
_HELD_BACK = 0.2
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


@dataclass(frozen=True, eq=False)
class Answers:
    """What shadow models answered for records, and what these were to them.

    confidence is float32 [S, M, C], y int64 [M], role int8 [S, M]: 1 in, 0 out, else neither.
    """

    confidence: NDArray[np.float32]
    y: NDArray[np.int64]
    role: NDArray[np.int8]


@dataclass(frozen=True)
class Recipe:
    """How the nets are trained: each `num_steps` times by Adam, on half IN, half OUT answers.

    The loss on held-back records is looked at every `steps_between` steps and at the end.
    """

    hidden: int
    learning_rate: float
    batch_size: int
    num_steps: int
    steps_between: int
    device: str


@dataclass(frozen=True, eq=False)
class ClassNets:
    """Nets C-H-2 with ReLU on standardised confidences, in double precision.

    weights are [G, C, H], [G, 1, H], [G, H, 2] and [G, 1, 2]; the outputs are OUT and IN.
    """

    mean: float
    deviation: float
    weights: tuple[NDArray[np.float64], ...]

    def log_odds(self, confidence: NDArray[np.float64], net: int) -> NDArray[np.float64]:
        """Log-odds [N] of IN that one net gives to confidences [N, C]."""
        first, first_bias, second, second_bias = (w[net] for w in self.weights)
        hidden_NH = np.maximum((confidence - self.mean) / self.deviation @ first + first_bias, 0.0)
        out_N2 = hidden_NH @ second + second_bias
        return np.asarray(out_N2[:, 1] - out_N2[:, 0])


def division(
    y: NDArray[np.int64], num_classes: int, min_records: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Which net judges each class, and which records each net learns from.

    Classes of fewer than `min_records` records, or none, share the last net. It learns from all
    records if those of its classes are still too few.

    Args:
        y: [M] classes of the records.
        num_classes: C.
        min_records: a class needs for a net of its own.

    Returns:
        int64 [C] numbers of nets, and for each net the row numbers of its records.
    """
    large = np.bincount(y, minlength=num_classes) >= min_records
    net_of_C = np.where(large, np.cumsum(large) - 1, large.sum())
    records = [np.flatnonzero(y == label) for label in np.flatnonzero(large)]
    if not large.all():
        rest = np.flatnonzero(~large[y])
        records.append(rest if len(rest) >= min_records else np.arange(len(y)))
    return net_of_C, records


def trained(
    answers: Answers, records: list[NDArray[np.int64]], recipe: Recipe, rng: np.random.Generator
) -> ClassNets:
    """One net for each set of records, each from the step with the least held-back loss.

    The answers about one record are much alike, so what is held back are records.

    Args:
        answers: what to learn from.
        records: for each of G nets the row numbers of its records; they may overlap.
        recipe: how.
        rng: draws the weights, the records held back, and the batches.

    Raises:
        ValueError: if a net has no IN or no OUT answers.
        FloatingPointError: if the training leaves the finite numbers.
    """
    num_classes = answers.confidence.shape[2]
    sides = [_sides(answers.role, rows, rng) for rows in records]
    pieces = [side[0] for pair in sides for side in pair]
    count_G2 = np.array([len(piece) for piece in pieces]).reshape(-1, 2)
    start_G2 = np.cumsum(count_G2).reshape(-1, 2) - count_G2
    rows = np.concatenate(pieces)
    flat_RC = answers.confidence.reshape(-1, num_classes)
    mean = float(answers.confidence.mean(dtype=np.float64))
    deviation = float(answers.confidence.std(dtype=np.float64))
    deviation = deviation if deviation > _NO_DEVIATION else 1.0
    feature_RC = torch.from_numpy(flat_RC).to(recipe.device).sub(mean).div_(deviation)
    held_back = [[torch.from_numpy(back).to(recipe.device) for _, back in pair] for pair in sides]
    weights = _initial(len(records), num_classes, recipe, rng)
    optimiser = torch.optim.Adam(weights, lr=recipe.learning_rate, fused=True)
    best = [w.detach().clone() for w in weights]
    least_G = torch.full((len(records),), torch.inf, device=recipe.device)
    half = recipe.batch_size // 2
    for step in range(recipe.num_steps):
        which_G2B = (rng.random((*count_G2.shape, half)) * count_G2[..., None]).astype(np.int64)
        batch_GB = rows[start_G2[..., None] + which_G2B].reshape(len(records), 2 * half)
        log_odds_GB = _log_odds(weights, feature_RC[torch.from_numpy(batch_GB).to(recipe.device)])
        loss = _loss(log_odds_GB[:, :half], log_odds_GB[:, half:]).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if (step + 1) % recipe.steps_between == 0 or step + 1 == recipe.num_steps:
            loss_G = _held_back_loss(weights, feature_RC, held_back)
            if not bool(torch.isfinite(loss_G).all()):
                raise FloatingPointError(
                    f"the training of nets left the finite numbers by step {step + 1} with "
                    f"learning_rate {recipe.learning_rate:g}; use a smaller one"
                )
            better_G = loss_G < least_G
            least_G = torch.where(better_G, loss_G, least_G)
            for kept, now in zip(best, weights, strict=True):
                kept[better_G] = now.detach()[better_G]
    return ClassNets(mean, deviation, tuple(w.double().cpu().numpy() for w in best))


def _sides(
    role_SM: NDArray[np.int8], records: NDArray[np.int64], rng: np.random.Generator
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """IN and OUT answers of one net's records, as flat numbers: to descend on, and held back.

    Where one part would be empty both are the whole.
    """
    order = rng.permutation(records)
    num_back = int(_HELD_BACK * len(records))
    sides = []
    for role, name in ((1, "IN"), (0, "OUT")):
        both = []
        for part in (order[num_back:], order[:num_back]):
            shadow, place = np.nonzero(role_SM[:, part] == role)
            both.append(shadow * role_SM.shape[1] + part[place])
        whole = np.concatenate(both)
        if len(whole) == 0:
            raise ValueError(
                f"none of the {len(role_SM)} shadow models has any of {len(records)} records "
                f"{name}; use more shadow models, or hold records they were divided by"
            )
        sides.append((both[0], both[1]) if all(map(len, both)) else (whole, whole))
    return sides


def _initial(
    num_nets: int, num_classes: int, recipe: Recipe, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Weights and biases uniform in +-1/sqrt(fan-in), drawn whatever the device is."""
    weights = []
    for size_in, size_out in ((num_classes, recipe.hidden), (recipe.hidden, 2)):
        for rows in (size_in, 1):
            drawn = rng.uniform(-1.0, 1.0, (num_nets, rows, size_out)) / np.sqrt(size_in)
            weight = torch.tensor(drawn, dtype=torch.float32, device=recipe.device)
            weights.append(weight.requires_grad_())
    return weights


def _log_odds(weights: list[torch.Tensor], feature_GBC: torch.Tensor) -> torch.Tensor:
    """Log-odds [G, B] that every net gives to its own features [G, B, C]."""
    first, first_bias, second, second_bias = weights
    hidden_GBH = torch.baddbmm(first_bias, feature_GBC, first).relu()
    out_GB2 = torch.baddbmm(second_bias, hidden_GBH, second)
    return out_GB2[..., 1] - out_GB2[..., 0]


def _loss(log_odds_in: torch.Tensor, log_odds_out: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the last axis, half the weight on each side."""
    is_in = nn.functional.softplus(-log_odds_in).mean(dim=-1)
    is_out = nn.functional.softplus(log_odds_out).mean(dim=-1)
    return 0.5 * (is_in + is_out)


@torch.no_grad()
def _held_back_loss(
    weights: list[torch.Tensor], feature_RC: torch.Tensor, held_back: list[list[torch.Tensor]]
) -> torch.Tensor:
    """The loss [G] of every net on the IN and OUT answers held back from it."""
    losses = []
    for net, sides in enumerate(held_back):
        mine = [w[net : net + 1] for w in weights]
        is_in, is_out = (_log_odds(mine, feature_RC[rows][None])[0] for rows in sides)
        losses.append(_loss(is_in, is_out))
    return torch.stack(losses)
