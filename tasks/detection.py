"""Can two kinds of records be told apart? Small classifiers, and what they find in answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks._intervals import Bools, Floats, auc_limits, auc_p_value
from tasks.base import stream

__all__ = [
    "GATE_TAIL",
    "Detection",
    "detectors",
    "scale_detectors",
    "stratified_auc",
    "swap_detection",
]

GATE_TAIL = 0.0005  # of each side of the 99.9 % interval that a gate is judged by

Detector = Callable[[NDArray[Any]], Floats]

_HIDDEN, _EPOCHS, _BATCH, _RATE = 64, 20, 128, 3e-3
_RIDGE = 0.01
_CLIP = 5.0  # standard deviations; a feature that one record in a thousand has is still seen
_FLAT = 1e-12  # less spread than this is rounding
_LOG_FLOOR = 1e-12
_SORTED = 10
_FEWEST, _MOST = 20, 4000


def detectors(x_ND: NDArray[Any], positive_N: Bools, *, seed: int) -> tuple[Detector, ...]:
    """Two classifiers that tell the positive records from the others.

    A ridge logistic regression, and a net with 64 hidden units. Features are standardised and
    clipped at 5 standard deviations, both kinds weigh the same.

    Args:
        x_ND: [N, D] features.
        positive_N: bool [N], both kinds present.
        seed: of the net's weights and batches.

    Returns:
        Functions from features [M, D] to scores [M], higher = more likely positive.
    """
    # On the CPU wherever the rest runs: they are smaller than the way to a GPU.
    standard = _standardiser(x_ND)
    z_ND, criterion = _tensor(standard(x_ND)), _balanced(positive_N)
    target_N = _tensor(positive_N)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "detector.init"))
        linear = nn.Linear(z_ND.shape[1], 1)
        net = nn.Sequential(nn.Linear(z_ND.shape[1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))
    _fit_linear(linear, z_ND, target_N, criterion)
    _fit_net(net, z_ND, target_N, criterion, seed)
    return _detector(linear, standard), _detector(net, standard)


def scale_detectors(x_ND: NDArray[Any], positive_N: Bools) -> tuple[Detector, ...]:
    """Two detectors for what those of `detectors` miss in few records with many features.

    A ridge logistic regression on features and their squares, which sees a change of scale; and
    the one feature or square whose means differ most between the two kinds, in standard errors. Of
    hundreds of features a regression on hundreds of records cannot find the one that counts.
    Squares are of standardised and clipped values; a feature with two values has none of its own,
    and without any square the regression is left out, being that of `detectors`.

    Args:
        x_ND: [N, D] features.
        positive_N: bool [N], both kinds present.

    Returns:
        As `detectors`.
    """
    standard = _standardiser(x_ND)
    z_ND = standard(x_ND)
    curved_D = ((z_ND > z_ND.min(axis=0)) & (z_ND < z_ND.max(axis=0))).any(axis=0)

    def squared(x_MD: NDArray[Any]) -> Floats:
        z_MD = standard(x_MD)
        return np.concatenate([z_MD, z_MD[:, curved_D] ** 2], axis=1)

    level = _standardiser(squared(x_ND))

    def wide(x_MD: NDArray[Any]) -> Floats:
        return level(squared(x_MD))

    w_NE = wide(x_ND)
    single = _single(w_NE, positive_N, wide)
    if not curved_D.any():
        return (single,)
    linear = nn.Linear(w_NE.shape[1], 1)
    _fit_linear(linear, _tensor(w_NE), _tensor(positive_N), _balanced(positive_N))
    return _detector(linear, wide), single


def _standardiser(x_ND: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
    """Takes features to mean 0 and deviation 1 over `x_ND`, clipped; those without spread to 0."""
    mean_D, spread_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    scale_D = np.where(spread_D > _FLAT, spread_D, np.inf)

    def standard(x_MD: NDArray[Any]) -> Floats:
        return np.asarray(((x_MD - mean_D) / scale_D).clip(-_CLIP, _CLIP))

    return standard


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _balanced(positive_N: Bools) -> nn.Module:
    """The loss under which both kinds weigh the same."""
    num_positive = int(positive_N.sum())
    return nn.BCEWithLogitsLoss(
        pos_weight=torch.tensor((len(positive_N) - num_positive) / num_positive)
    )


def _detector(module: nn.Module, features: Callable[[NDArray[Any]], Floats]) -> Detector:
    def score(x_MD: NDArray[Any]) -> Floats:
        with torch.inference_mode():
            raw_M = module(_tensor(features(x_MD))).squeeze(1).double().numpy()
        # Equal records may differ in their last bits by their place in the batch.
        return np.asarray(raw_M.round(5))

    return score


def _single(
    w_NE: Floats, positive_N: Bools, features: Callable[[NDArray[Any]], Floats]
) -> Detector:
    """The feature with the largest difference of means, in standard errors, the right way up."""
    ours, others = w_NE[positive_N], w_NE[~positive_N]
    error_E = np.sqrt(ours.var(axis=0) / len(ours) + others.var(axis=0) / len(others))
    # No spread in either kind: apart for certain if the means differ, else telling nothing.
    distance_E = (ours.mean(axis=0) - others.mean(axis=0)) / error_E.clip(min=_FLAT)
    best = int(np.abs(distance_E).argmax())
    sign = np.sign(distance_E[best])
    return lambda x_MD: np.asarray((sign * features(x_MD)[:, best]).round(5))


def _fit_linear(
    linear: nn.Linear, z_ND: torch.Tensor, target_N: torch.Tensor, criterion: nn.Module
) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = criterion(linear(z_ND).squeeze(1), target_N) + _RIDGE * linear.weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _fit_net(
    net: nn.Module, z_ND: torch.Tensor, target_N: torch.Tensor, criterion: nn.Module, seed: int
) -> None:
    order = torch.Generator().manual_seed(stream(seed, "detector.batches"))
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE, weight_decay=1e-4, fused=True)
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(len(z_ND), generator=order), _BATCH):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(criterion(net(z_ND[batch]).squeeze(1), target_N[batch]))
            optimizer.step()


def stratified_auc(
    score_N: Floats, positive_N: Bools, stratum_N: NDArray[Any], tail: float = GATE_TAIL
) -> tuple[float, float, float]:
    """Probability that a positive outscores a negative of its own stratum, with its interval.

    Ties count 1/2. Strata weigh by their positives; those without a positive or with fewer than
    two negatives are left out. All values are NaN if two positives are not left.

    Args:
        score_N: [N] scores, compared within a stratum only.
        positive_N: bool [N].
        stratum_N: [N].
        tail: of each side of the interval.

    Source: the placements of DeLong et al. 1988, within strata.
    """
    value, variance, num_pairs = _stratified(score_N, positive_N, stratum_N)
    return value, *auc_limits(value, variance, num_pairs, tail)


def _stratified(
    score_N: Floats, positive_N: Bools, stratum_N: NDArray[Any]
) -> tuple[float, float, int]:
    """AUC within strata, its variance, and how many disjoint pairs there are at least."""
    places, negative_variance, num_negatives = [], 0.0, 0
    for stratum in np.unique(stratum_N):
        mine = stratum_N == stratum
        ours, others = score_N[mine & positive_N], score_N[mine & ~positive_N]
        if len(ours) < 1 or len(others) < 2:
            continue
        places.append(_share_below(ours, others))
        above = 1 - _share_below(others, ours)
        # What the negatives of a stratum add: its weight is len(ours) over all positives.
        negative_variance += len(ours) ** 2 * above.var(ddof=1) / len(others)
        num_negatives += len(others)
    place_P = np.concatenate(places) if places else np.empty(0)
    if len(place_P) < 2:
        return float("nan"), float("nan"), 0
    value = float(place_P.mean())
    variance = float(place_P.var(ddof=1) / len(place_P) + negative_variance / len(place_P) ** 2)
    return value, variance, min(len(place_P), num_negatives)


def _share_below(score_M: Floats, others_N: Floats) -> Floats:
    """[M], the share of `others_N` below each score, ties counting 1/2."""
    order = np.sort(others_N)
    below = np.searchsorted(order, score_M, "left") + np.searchsorted(order, score_M, "right")
    return np.asarray(below / (2 * len(others_N)))


@dataclass(frozen=True)
class Detection:
    """How well answers with a swapped label are told apart: AUC, its 99.9 % limits, its p-value."""

    auc: float
    low: float
    high: float
    p: float

    @property
    def detectable(self) -> bool:
        """Whether the vectors give the swap away."""
        return self.low > 0.5


def swap_detection(
    released_NC: NDArray[Any], undefended_NC: NDArray[Any], *, seed: int
) -> Detection | None:
    """Can answers whose label the defense changed be told from the others, given the label?

    Positive are the records whose released label differs from the undefended one. The two
    classifiers of `detectors`, their scores added, see the released vector and its largest
    entries' logarithms, both less their mean over the records of the same released label. Each
    half of the records is scored by classifiers fitted on the other half, and compared within
    its label. Of either kind at most 4,000 records are used.

    Args:
        released_NC: [N, C] answers of the defended service.
        undefended_NC: [N, C] answers of the classifier about the same records.
        seed: of the sample, the halves and the classifiers.

    Returns:
        The detection, or None with fewer than 20 records of either kind among the labels that
        both kinds have.

    Source: methods.md section 4.2, "swapped vectors must not look special", and trap 17.
    """
    label_N = released_NC.argmax(axis=1)
    swapped_N = label_N != undefended_NC.argmax(axis=1)
    rng = np.random.default_rng(stream(seed, "detection.sample"))
    chosen = _comparable(label_N, swapped_N, rng)
    label_M, swapped_M = label_N[chosen], swapped_N[chosen]
    if min(swapped_M.sum(), (~swapped_M).sum()) < _FEWEST:
        return None
    feature_MD = _vector_features(released_NC[chosen])
    second_M = np.zeros(len(chosen), dtype=bool)
    for kind in (False, True):
        # Dealt out in turn, label by label, so that both halves have of every label and kind.
        ours = np.flatnonzero(swapped_M == kind)
        second_M[ours[np.argsort(label_M[ours], kind="stable")][1::2]] = True
    score_M = np.zeros(len(chosen))
    for half, scored_M in enumerate((second_M, ~second_M)):
        centred_MD = _less_label_mean(feature_MD, label_M, ~scored_M)
        fitted = detectors(
            centred_MD[~scored_M], swapped_M[~scored_M], seed=stream(seed, "detection.fit", half)
        )
        score_M[scored_M] = sum(detector(centred_MD[scored_M]) for detector in fitted)
    found = _stratified(score_M, swapped_M, 2 * label_M + second_M)
    if np.isnan(found[1]):
        return None
    return Detection(found[0], *auc_limits(*found, GATE_TAIL), auc_p_value(*found))


def _comparable(label_N: NDArray[Any], swapped_N: Bools, rng: np.random.Generator) -> Any:
    """Rows [M] of labels that both kinds have, at most 4,000 of a kind, in random order."""
    shared = np.intersect1d(label_N[swapped_N], label_N[~swapped_N])
    order = rng.permutation(np.flatnonzero(np.isin(label_N, shared)))
    return np.concatenate([order[swapped_N[order] == kind][:_MOST] for kind in (False, True)])


def _vector_features(p_NC: NDArray[Any]) -> Floats:
    """[N, C + up to 10]: the vector, and the logarithms of its largest entries, largest first.

    The latter show a special shape on whatever label it appears.
    """
    sorted_NC = -np.sort(-p_NC, axis=1)[:, :_SORTED]
    return np.concatenate([p_NC, np.log(sorted_NC.clip(min=_LOG_FLOOR))], axis=1)


def _less_label_mean(feature_ND: Floats, label_N: NDArray[Any], fitted_N: Bools) -> Floats:
    """Features less the mean of their label over the records the classifiers are fitted on."""
    centred_ND = feature_ND.copy()
    for label in np.unique(label_N):
        mine_N = label_N == label
        known_N = mine_N & fitted_N
        centred_ND[mine_N] -= feature_ND[known_N if known_N.any() else mine_N].mean(axis=0)
    return centred_ND
