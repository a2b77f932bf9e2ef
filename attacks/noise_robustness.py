"""The noise attack: members keep their label under more noise."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import roc_auc_score

from attacks._keyed import keyed_normal, keyed_uniform
from attacks.base import Attack, Classifier, Kind, Knowledge

__all__ = ["NoiseRobustness"]

# Features of noisy copies held at once: 32 MB in double precision. So many labels asked in a call.
_NUMBERS_AT_ONCE = 2**22
_ROWS_AT_ONCE = 2**14

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Deviation = Annotated[float, Field(gt=0)]


class NoiseRobustness(Attack):
    """Score a record by the share of noisy copies that the service gives the true label.

    Bits are flipped: exactly so many of them, or each with a probability. Pixels and other
    continuous features get normal or uniform noise; pixels stay in [0, 1]. Records the service
    labels wrongly score 0, and no copies of them are asked about.

    The strength of the noise is the one that tells known members from known non-members best by
    AUC, the weakest of equally good ones. All strengths are tried with the same draws, so that they
    differ by strength alone: 3 flipped bits are 2 of them and one more. With a single strength
    there is nothing to choose and no known record is asked about.

    Source: Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021, sections
        3.2 (misclassified records: 0) and 3.4 (robustness to random noise), which tunes deviation
        and flip probability; the grids are ours. Exactly so many flips are from public code, which
        takes the best number on the evaluation records; we choose on known ones.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {"deviations": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)},
        "cpu": {
            "repeats": 25,
            "num_flips": (1, 2, 3, 4, 6, 8, 10, 13, 16, 20),
            "deviations": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
            "num_known": 400,
        },
    }

    repeats: int = Field(100, ge=1, description="noisy copies of each record")
    flips: Literal["exact", "each"] = Field(
        "exact", description="bits: flip exactly `num_flips`, or each with `flip_probabilities`"
    )
    num_flips: tuple[Count, ...] = Field(
        tuple(range(1, 21)), min_length=1, description="strengths for bits: how many are flipped"
    )
    flip_probabilities: tuple[Probability, ...] = Field(
        (0.005, 0.01, 0.015, 0.02), min_length=1, description="strengths for bits: chance of a flip"
    )
    law: Literal["normal", "uniform"] = Field("normal", description="of continuous noise")
    deviations: tuple[Deviation, ...] = Field(
        (0.025,),
        min_length=1,
        description="strengths for pixels and other features: standard deviation, whatever the law",
    )
    num_known: int = Field(
        1000, ge=2, description="most known records the strength is chosen on, half of them members"
    )

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Share of noisy copies with label `y`, in [0, 1]; 0 where the record's label is not `y`.

        Args:
            query: asked once a record, and `repeats` times for each whose label is `y`.
            known: `fit` and `cal`, to choose among several strengths: as many are asked through
                `known.query`, `repeats` times for each strength.
            x: [N, ...] records; bits if `known.kind` is "binary", in [0, 1] if it is "image".
            y: [N] labels.
            seed: of the noise, drawn record by record, and of which known records are used.

        Raises:
            ValueError: if no strength suits the records, or several do and the known records are
                all members or all non-members.
        """
        strengths = self._strengths(known.kind, math.prod(x.shape[1:]))
        if len(strengths) > 1:
            strengths = (self._chosen(known, strengths, seed),)
        (share_N,) = self._robustness(query, x, y, known.kind, strengths, seed)
        return np.asarray(share_N)

    def _strengths(self, kind: Kind, dim: int) -> tuple[float, ...]:
        """Of the noise for records of this kind, weakest first."""
        if kind != "binary":
            return tuple(sorted(set(self.deviations)))
        if self.flips == "each":
            return tuple(sorted(set(self.flip_probabilities)))
        possible = tuple(sorted({num for num in self.num_flips if num <= dim}))
        if not possible:
            raise ValueError(
                f"noise_robustness is to flip {min(self.num_flips)} bits or more (num_flips) of "
                f"records that have {dim}; give it a number up to {dim}"
            )
        return possible

    def _chosen(self, known: Knowledge, strengths: tuple[float, ...], seed: int) -> float:
        """The strength whose scores tell known members from known non-members best."""
        x, y, is_member = (
            np.concatenate([getattr(known.fit, name), getattr(known.cal, name)])
            for name in ("x", "y", "is_member")
        )
        if is_member.all() or not is_member.any():
            raise ValueError(
                f"known.fit and known.cal hold {int(is_member.sum())} members among {len(y)} "
                "records; noise_robustness needs both members and non-members to choose among "
                f"{len(strengths)} strengths: give it one strength, or known records of both kinds"
            )
        rng = np.random.default_rng([seed, 0])
        each = self.num_known // 2
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(side))[:each] for side in (is_member, ~is_member)]
        )
        share_SM = self._robustness(known.query, x[rows], y[rows], known.kind, strengths, seed)
        # Rounded, so that equally good strengths tie whatever the order of summation.
        auc_S = [round(float(roc_auc_score(is_member[rows], share)), 12) for share in share_SM]
        return strengths[int(np.argmax(auc_S))]

    def _robustness(
        self,
        query: Classifier,
        x: NDArray[Any],
        y: NDArray[np.int64],
        kind: Kind,
        strengths: tuple[float, ...],
        seed: int,
    ) -> NDArray[np.float64]:
        """Shares [S, N] of copies with the right label; 0 for records without it."""
        share_SN = np.zeros((len(strengths), len(x)))
        right = np.flatnonzero(query(x) == y)
        at_once = min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // math.prod(x.shape[1:]))
        step = max(1, at_once // self.repeats)
        for start in range(0, len(right), step):
            rows = right[start : start + step]
            label = np.repeat(y[rows], self.repeats)
            for share_N, copies in zip(
                share_SN, self._copies(x[rows], kind, strengths, seed), strict=True
            ):
                correct = query(copies) == label
                share_N[rows] = correct.reshape(-1, self.repeats).mean(axis=1)
        return share_SN

    def _copies(
        self, x: NDArray[Any], kind: Kind, strengths: tuple[float, ...], seed: int
    ) -> Iterator[NDArray[np.float32]]:
        """For each strength, `repeats` noisy copies of each record after another."""
        shape = (self.repeats, *x.shape[1:])
        clean = x[:, None]
        if kind == "binary" and self.flips == "exact":
            # Copies last, so that the first draws do not depend on the largest number of flips.
            drawn = keyed_uniform(x, seed, 0, (int(max(strengths)), self.repeats))
            which = _distinct(drawn.transpose(0, 2, 1), math.prod(x.shape[1:]))
            for num in strengths:
                copies = np.repeat(x.reshape(len(x), 1, -1), self.repeats, axis=1)
                flipped = which[..., : int(num)]
                bits = np.take_along_axis(copies, flipped, axis=2)
                np.put_along_axis(copies, flipped, 1 - bits, axis=2)
                yield _flat(copies.reshape(len(x), *shape))
        elif kind == "binary":
            chance = keyed_uniform(x, seed, 0, shape)
            for probability in strengths:
                yield _flat(np.where(chance < probability, 1 - clean, clean))
        else:
            if self.law == "normal":
                noise = keyed_normal(x, seed, 0, shape)
            else:
                noise = math.sqrt(3) * (2 * keyed_uniform(x, seed, 0, shape) - 1)
            for deviation in strengths:
                copies = clean + deviation * noise
                yield _flat(copies.clip(0, 1) if kind == "image" else copies)


def _flat(copies: NDArray[Any]) -> NDArray[np.float32]:
    """Copies [n, R, ...] as [n R, ...], as a service reads them."""
    return copies.reshape(-1, *copies.shape[2:]).astype(np.float32)


def _distinct(uniform: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """Different numbers below `num`, uniformly: [..., K] for uniform draws [..., K], K <= `num`.

    The first k of them are such a choice as well. One draw a number, where shuffling all features
    would need one a feature.
    """
    chosen = np.empty(uniform.shape, dtype=np.int64)
    for k in range(uniform.shape[-1]):
        # The place among the numbers left; those chosen before it, from below, move it up.
        pick = (uniform[..., k] * (num - k)).astype(np.int64)
        before = np.sort(chosen[..., :k], axis=-1)
        for i in range(k):
            pick += pick >= before[..., i]
        chosen[..., k] = pick
    return chosen
