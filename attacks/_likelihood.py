"""The signal and the likelihood ratio of LiRA, over all records at once."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

__all__ = ["lira", "logit_confidence"]

# The least deviation, in nats. Answers rounded to labels or to two decimals may agree in every
# shadow model; a thousandth lies far above the rounding of a network's logits and far below what
# retraining changes.
_FLOOR = 1e-3
# Values of phi worked on at once (1 MB), so that the passes over them stay in the cache.
_AT_ONCE = 2**17

Pool = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]


def logit_confidence(
    confidence: NDArray[Any], y: NDArray[np.int64], *, clip: float = 1e-12
) -> NDArray[np.float64]:
    """The signal phi = log p_y - log sum_{i != y} p_i, nearly Gaussian over retrained models.

    The second term is summed as released: 1 - p_y loses all digits where p_y is nearly 1, and
    would be wrong for rows that do not sum to 1.

    Args:
        confidence: [..., C], non-negative. Not modified.
        y: [...] labels in 0..C-1; broadcasts against the leading axes.
        clip: the least value of either logarithm's argument. It bounds phi of distributions by
            -log(clip) and decides ties in the tail.

    Returns:
        Finite float64 [...] for finite rows.

    Source: Carlini et al., S&P 2022, section IV-C (logit scaling).
    """
    others = np.array(confidence, dtype=np.float64)
    label = np.broadcast_to(y, others.shape[:-1])[..., None]
    true = np.take_along_axis(others, label, axis=-1)[..., 0]
    np.put_along_axis(others, label, 0.0, axis=-1)
    phi: NDArray[np.float64] = np.log(np.maximum(true, clip))
    phi -= np.log(np.maximum(others.sum(axis=-1), clip))
    return phi


def lira(
    target_phi: NDArray[np.float64],
    shadow_phi: NDArray[np.float64],
    is_in: NDArray[np.bool_],
    is_out: NDArray[np.bool_],
    *,
    mode: Literal["online", "offline"],
    global_variance: bool,
    pool: Pool | None = None,
) -> NDArray[np.float64]:
    """Log-likelihood ratio of "member", averaged over queries.

    online: log N(phi; mean_in, sd_in) - log N(phi; mean_out, sd_out). offline: the one-sided
    log Phi((phi - mean_out) / sd_out). Means are each record's own. Deviations are each record's
    own or, with `global_variance`, pooled over records from the residuals within each record;
    both divide by degrees of freedom, since a record may have more IN than OUT models.

    Args:
        target_phi: [N, Q] signal of the judged model for each record and query.
        shadow_phi: [K, N, Q] signals of the shadow models. Entries that are neither IN nor OUT
            may hold anything.
        is_in: [K, N], the model trained on the record.
        is_out: [K, N], the model never saw the record.
        mode: "offline" reads no IN model.
        global_variance: one deviation for all records instead of one each.
        pool: `(shadow_phi, is_in, is_out)` of the records to pool deviations over, by default the
            judged ones, whose scores then depend on each other. Their number is free.

    Returns:
        Finite float64 [N].

    Raises:
        ValueError: if shapes disagree, a model is both IN and OUT of a record, a signal in use is
            not finite, or records have too few models: none, or one where its own deviation is
            wanted.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
        algorithm 1 (online), section IV (offline) and its fixed-variance ablation. The authors'
        code differs: it takes medians, gives OUT the deviation of IN when the variance is fixed
        (the spread between records included), and scores offline by a two-sided density.
    """
    shadows = (shadow_phi, is_in, is_out)
    _check_shapes(shadows)
    if target_phi.shape != shadow_phi.shape[1:]:
        raise ValueError(
            f"target_phi is {target_phi.shape} but shadow_phi is {shadow_phi.shape}; "
            "they must be [N, Q] and [K, N, Q]"
        )
    masks = {"OUT": is_out} if mode == "offline" else {"OUT": is_out, "IN": is_in}
    for side, mask in masks.items():
        _check_counts(side, mask, 1 if global_variance else 2)
    if pool is not None:
        _check_shapes(pool)
    z: dict[str, NDArray[np.float64]] = {}
    log_deviation: dict[str, NDArray[np.float64]] = {}
    for side, mask in masks.items():
        mine = _moments(shadow_phi, mask)
        if not global_variance:
            deviation = _deviation(mine.squares, mine.count[:, None] - 1)
        elif pool is None:
            deviation = _pooled_deviation(mine, side)
        else:
            pool_phi, pool_in, pool_out = pool
            deviation = _pooled_deviation(
                _moments(pool_phi, pool_in if side == "IN" else pool_out), side
            )
        with np.errstate(invalid="ignore"):
            z[side] = (target_phi - mine.mean) / deviation
        log_deviation[side] = np.log(deviation)
        if num_bad := int(np.count_nonzero(~np.isfinite(z[side]).all(axis=1))):
            raise ValueError(
                f"the signals of {num_bad} of {len(target_phi)} records are not finite; "
                "look for nan or infinite confidences of the target or the shadow models"
            )
    if mode == "offline":
        ratio_NQ = log_ndtr(z["OUT"])
    else:
        ratio_NQ = 0.5 * (z["OUT"] ** 2 - z["IN"] ** 2)
        ratio_NQ += log_deviation["OUT"] - log_deviation["IN"]
    return np.asarray(ratio_NQ.mean(axis=1))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of one side's models: how many [N], mean [N, Q], summed squared residuals [N, Q]."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]


def _moments(phi: NDArray[np.float64], mask: NDArray[np.bool_]) -> _Moments:
    """Moments over the entries of phi [K, N, Q] in `mask` [K, N].

    In two passes: sums of squares taken in one would lose the small deviations of saturated
    answers. A mask is multiplied, as `np.where` on a mask without order costs twenty times more;
    only where infinite entries would turn into nan are they replaced.
    """
    num_shadows, num_records, num_queries = phi.shape
    count_N = np.count_nonzero(mask, axis=0)
    mean_NQ = np.empty((num_records, num_queries))
    squares_NQ = np.empty((num_records, num_queries))
    step = max(1, _AT_ONCE // max(1, num_shadows * num_queries))
    for start in range(0, num_records, step):
        part = slice(start, start + step)
        mask_Kn1 = mask[:, part, None].astype(np.float64)
        # What is not finite and in use is told by the caller, with the number of records.
        with np.errstate(invalid="ignore"):
            kept_KnQ = phi[:, part] * mask_Kn1
            total_nQ = kept_KnQ.sum(axis=0)
            if not np.isfinite(total_nQ).all():
                kept_KnQ = np.where(mask[:, part, None], phi[:, part], 0.0)
                total_nQ = kept_KnQ.sum(axis=0)
            mean_NQ[part] = total_nQ / np.maximum(count_N[part, None], 1)
            kept_KnQ -= mean_NQ[part]
            kept_KnQ *= mask_Kn1
        squares_NQ[part] = np.einsum("knq,knq->nq", kept_KnQ, kept_KnQ)
    return _Moments(count_N, mean_NQ, squares_NQ)


def _deviation(squares: NDArray[np.float64], freedom: Any) -> NDArray[np.float64]:
    """Standard deviations from summed squared residuals, at least the floor."""
    return np.asarray(np.maximum(np.sqrt(squares / freedom), _FLOOR))


def _pooled_deviation(moments: _Moments, side: str) -> NDArray[np.float64]:
    """One deviation a query, [Q], from the residuals within every record."""
    freedom = int(np.maximum(moments.count - 1, 0).sum())
    if freedom == 0:
        raise ValueError(
            f"none of the {len(moments.count)} records that lira pools deviations over has two "
            f"{side} models; use more shadow models, or pool over records they were divided by"
        )
    return _deviation(moments.squares.sum(axis=0), freedom)


def _check_shapes(shadows: Pool) -> None:
    """Raise where signals [K, N, Q] and roles [K, N] do not fit together."""
    phi, is_in, is_out = shadows
    if phi.ndim != 3 or not phi.shape[:2] == is_in.shape == is_out.shape:
        raise ValueError(
            f"shadow_phi is {phi.shape}, is_in {is_in.shape} and is_out {is_out.shape}; "
            "they must be [K, N, Q], [K, N] and [K, N]"
        )
    if num_both := int(np.count_nonzero(is_in & is_out)):
        raise ValueError(f"{num_both} entries are both IN and OUT; a model's record is one of them")


def _check_counts(side: str, mask: NDArray[np.bool_], least: int) -> None:
    """Raise if a record has fewer than `least` models on this side."""
    count_N = np.count_nonzero(mask, axis=0)
    if num_none := int(np.count_nonzero(count_N == 0)):
        raise ValueError(
            f"{num_none} of {len(count_N)} records have no {side} models among {len(mask)} shadow "
            "models; use more shadow models, or leave these records out"
        )
    if num_few := int(np.count_nonzero(count_N < least)):
        raise ValueError(
            f"{num_few} of {len(count_N)} records have one {side} model among {len(mask)} shadow "
            "models, too few for a deviation of their own; use more, or set global_variance"
        )
