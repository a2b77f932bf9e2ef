"""What an attacker reads off its own records and models as references for the judged ones."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks._likelihood import logit_confidence
from attacks._ranks import Smooth, own_levels, predictive_levels
from attacks.base import Knowledge, Records
from attacks.metric import statistic_of

__all__ = ["draw", "held_records", "loss", "own_scores", "place_in", "shadow_signals", "signal"]

# Shadow confidences held at once: 128 MB.
_AT_ONCE = 2**24


def held_records(known: Knowledge) -> Records:
    """Every record the attacker holds, once: known rows, then those of the population.

    Whose membership was told is no part of it: non-members among the known ones are found in both.
    """
    x, y = known.x_of(known.rows)
    others = known.population
    x_M, y_M = np.concatenate([x, others.x]), np.concatenate([y, others.y])
    first = np.sort(np.unique(_bytes_of(x_M), return_index=True)[1])
    return Records(x_M[first], y_M[first])


def draw(records: Records, most: int, rng: np.random.Generator) -> Records:
    """At most `most` of the records, drawn without replacement and left in order."""
    if len(records) <= most:
        return records
    rows = np.sort(rng.permutation(len(records))[:most])
    return Records(records.x[rows], records.y[rows])


def place_in(held: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
    """Where in `held` [M, ...] each record of x [N, ...] is, int64 [N]; -1 if it is not."""
    _, which = np.unique(_bytes_of(np.concatenate([held, x])), return_inverse=True)
    place = np.full(len(held) + len(x), -1, dtype=np.int64)
    place[which[: len(held)]] = np.arange(len(held))
    return place[which[len(held) :]]


def _bytes_of(x: NDArray[Any]) -> NDArray[np.void]:
    """[N] values that are equal where records [N, ...] are equal as float32."""
    # Adding 0 turns -0.0, which equals 0.0 but has other bytes, into 0.0.
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    flat = np.ascontiguousarray(flat, dtype=np.float32) + np.float32(0)
    return flat.view(np.dtype((np.void, flat.shape[1] * flat.itemsize)))[:, 0]


def loss(confidence: NDArray[Any], y: NDArray[np.int64], *, clip: float) -> NDArray[np.float64]:
    """-log p_y [N] in [0, -log clip] of confidences [N, C], p_y being taken into [clip, 1]."""
    return -statistic_of("loss", confidence, y, clip=clip)


def signal(
    confidence: NDArray[Any], y: NDArray[np.int64], smooth: Smooth, *, clip: float
) -> NDArray[np.float64]:
    """What is ranked, [N], lower = more likely a member: the loss, or minus the logit of p_y.

    The logit is not clipped where p_y rounds to 1, and nearly normal over retrained models.
    """
    if smooth == "linear":
        return loss(confidence, y, clip=clip)
    return -logit_confidence(confidence, y, clip=clip)


def shadow_signals(
    known: Knowledge, x: NDArray[Any], y: NDArray[np.int64], smooth: Smooth, *, clip: float
) -> NDArray[np.float64]:
    """The signal [S, N] of every record under every shadow model; see `signal`."""
    shadows = known.shadows
    signal_SN = np.empty((shadows.num_shadows, len(x)))
    step = max(1, _AT_ONCE // (shadows.num_shadows * known.num_classes))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        for signal_N, confidence_nC in zip(signal_SN, shadows(x[part]), strict=True):
            signal_N[part] = signal(confidence_nC, y[part], smooth, clip=clip)
    return signal_SN


def own_scores(
    target: NDArray[np.float64],
    reference: NDArray[np.float64],
    is_out: NDArray[np.bool_],
    smooth: Smooth,
    *,
    clip: float,
) -> NDArray[np.float64]:
    """Minus the level of each record's signal among its OUT models', in [-1, 0].

    Minus the level, and not 1 less the level: next to 1 the smallest levels, which tell the surest
    members apart, would all be rounded to the same number.

    Args:
        target: [N] signal of the target.
        reference: [S, N] signals of the reference models.
        is_out: [S, N], the model never saw the record.
        smooth: which signal it is, and how levels are read between those of the models.
        clip: least p_y.

    Raises:
        ValueError: if a record has too few OUT models or a signal is not finite.
    """
    if smooth == "linear":
        return -own_levels(target, reference, is_out, low=0.0, high=-float(np.log(clip)))
    return -predictive_levels(target, reference, is_out)
