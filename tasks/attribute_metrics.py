"""How well a sensitive attribute was inferred: rates, intervals, and what guessing would get."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import metrics
from tasks._intervals import TAIL, Bools, Floats

__all__ = [
    "attribute_metrics",
    "balanced_accuracy",
    "confusion",
    "macro_f1",
    "macro_f1_interval",
    "mutual_information",
]

Ints = NDArray[np.int64]

_RESAMPLES = 2000


def confusion(value_N: Ints, inferred_N: Ints, num_values: int) -> Ints:
    """How often each value [row] was inferred to be each [column]: int64 [A, A]."""
    cell_N = value_N * num_values + inferred_N
    return np.bincount(cell_N, minlength=num_values**2).reshape(num_values, num_values)


def balanced_accuracy(count_AA: Ints) -> tuple[float, float, float]:
    """The mean over values of the share inferred rightly, with its 95 % interval.

    It is what accuracy is, on average, on a subset in which all values are equally frequent, but
    no record is left out. Values that no record has do not count. The interval puts together
    those of the shares (Clopper-Pearson), so it has a width where every guess is right.

    Args:
        count_AA: as from `confusion`; at least one record.

    Source: methods.md section 7.2; Zou & Donner 2008, equation 9, for the interval of a sum of
        independent rates.
    """
    num_A = count_AA.sum(axis=1)
    met = num_A > 0
    right_A, num_A = np.diag(count_AA)[met], num_A[met]
    rate_A = right_A / num_A
    low_A, high_A = metrics.clopper_pearson(right_A, num_A)
    value = float(rate_A.mean())
    below, above = (
        float(np.sqrt(np.sum((rate_A - limit_A) ** 2))) / len(rate_A) for limit_A in (low_A, high_A)
    )
    return value, max(0.0, value - below), min(1.0, value + above)


def macro_f1(count_AA: NDArray[np.generic]) -> Floats:
    """The mean over values of F1 = 2 right / (had + inferred), those no record has left out.

    Args:
        count_AA: counts [..., A, A].

    Returns:
        [...], in [0, 1].
    """
    counts = np.asarray(count_AA, dtype=np.float64)
    had, inferred = counts.sum(axis=-1), counts.sum(axis=-2)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = np.divide(2 * right, had + inferred, out=np.full(had.shape, np.nan), where=had > 0)
    return np.asarray(np.nanmean(f1, axis=-1))


def macro_f1_interval(
    value_N: Ints, inferred_N: Ints, is_member_N: Bools, num_values: int, *, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of `macro_f1`, records drawn anew among members and others apart.

    To draw N records anew is to draw the counts of the cells from a multinomial.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros((_RESAMPLES, num_values, num_values), dtype=np.int64)
    for side in (is_member_N, ~is_member_N):
        if side.any():
            count_AA = confusion(value_N[side], inferred_N[side], num_values)
            share = count_AA.ravel() / side.sum()
            cells = rng.multinomial(int(side.sum()), share, size=_RESAMPLES)
            drawn += cells.reshape(drawn.shape)
    low, high = np.quantile(macro_f1(drawn), [TAIL, 1 - TAIL])
    return float(low), float(high)


def mutual_information(count_AA: Ints) -> float:
    """What the inferred value tells of the value, in bits: at most what the answer tells.

    The plug-in estimate less what it is on average where nothing is told (Miller & Madow), which
    is (A - 1)^2 / (2 N) nats; not below 0.

    Args:
        count_AA: as from `confusion`; at least one record.
    """
    num = count_AA.sum()
    p_AA = count_AA / num
    had_A, inferred_A = p_AA.sum(axis=1), p_AA.sum(axis=0)
    expected_AA = np.outer(had_A, inferred_A)
    cells = p_AA > 0
    plugin = np.sum(p_AA[cells] * np.log2(p_AA[cells] / expected_AA[cells]))
    freedom = (np.count_nonzero(had_A) - 1) * (np.count_nonzero(inferred_A) - 1)
    return max(0.0, float(plugin - freedom / (2 * num * np.log(2))))


def attribute_metrics(
    value_N: NDArray[np.int64],
    inferred_N: NDArray[np.int64],
    is_member_N: NDArray[np.bool_],
    num_values: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """The figures of the table `attribute`; those of a side without records are left out.

    Args:
        value_N: the values, below `num_values`.
        inferred_N: what was inferred.
        is_member_N: whether each record trained the target.
        num_values: A; only those that some record has count.
        seed: of the resampling behind the limits of `macro_f1`.
    """
    count_AA = confusion(value_N, inferred_N, num_values)
    met_A = count_AA.sum(axis=1)
    met_A = met_A[met_A > 0]
    _, low, high = metrics.accuracy_interval(value_N == inferred_N)
    f1_low, f1_high = macro_f1_interval(value_N, inferred_N, is_member_N, num_values, seed=seed)
    figures: dict[str, Any] = {
        **_balanced(count_AA, ""),
        "natural_accuracy_low": low,
        "natural_accuracy_high": high,
        "macro_f1": float(macro_f1(count_AA)),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "mutual_information": mutual_information(count_AA),
        "num_values": len(met_A),
        "num_rarest": int(met_A.min()),
        "uniform_accuracy": 1 / len(met_A),
    }
    for side, chosen_N in (("members", is_member_N), ("nonmembers", ~is_member_N)):
        figures[f"num_{side}"] = int(chosen_N.sum())
        if chosen_N.any():
            of_side_AA = confusion(value_N[chosen_N], inferred_N[chosen_N], num_values)
            figures |= _balanced(of_side_AA, f"_{side}")
    return figures


def _balanced(count_AA: Ints, side: str) -> dict[str, float]:
    value, low, high = balanced_accuracy(count_AA)
    name = f"balanced_accuracy{side}"
    natural = float(np.trace(count_AA) / count_AA.sum())
    both = {f"natural_accuracy{side}": natural, name: value}
    return {**both, f"{name}_low": low, f"{name}_high": high}
