"""Coin inversion: tell MemGuard's noised answers from clean ones, and take the noise off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import log_softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge

from attacks._membership_net import both_sides
from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["CoinInvert"]

# Streams drawn from the attack's seed.
_DIVISION, _COPY, _COIN, _MEMBERSHIP = 0, 1, 2, 3
# Fewer own answers of one kind than these teach nothing about it.
_LEAST_OF_A_KIND = 10


class CoinInvert(Attack):
    """Learn on an own copy of the service what the noise does, and undo it before judging.

    The attacker trains one model on records of its own and defends it as the service is defended.
    Asking it with and without the defense shows for each of these records which side its coin
    fell on and what the clean answer was. From that it learns (1) the probability that a released
    row is noised, by a random forest, and (2) a ridge regression of the clean log-scores on the
    released ones, for rows that are. Both read a row in falling order, as MemGuard's classifier
    does. The mean of released and regressed scores, weighted with the probability, estimates the
    clean row. A second forest then learns from the deployed service's answers to the known records
    how estimate, released row, probability and true label tell membership.

    The own copy carries the defense whatever the experiment's `adaptive` says: without it there is
    no attack. The attacker's records are divided 40/40/20, into members of the copy, others, and
    its defense's reference. If the deployed chain holds more than MemGuard, the model asked
    without a defense is without all of it, and what is learnt is the way back from the whole chain.

    Source: methods.md section 6.12-k, division as in 6.3; MemGuard (Jia et al. 2019) section 4 for
        what the coin decides. Where methods.md re-runs phase I on candidates for the clean row, we
        regress. Forests instead of a net as in `nsh`, because noised rows lie close together on
        MemGuard's boundary: on synth_s under `epsilon` 1 the net's AUC is 0.55 and theirs 0.68.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-adaptive"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    AGAINST: ClassVar[tuple[str, ...]] = ("memguard",)
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {},
        "cpu": {"num_trees": 200},
    }

    same: float = Field(
        1e-5, gt=0, description="L1 distance from the clean row above which a row is noised"
    )
    ridge: float = Field(1.0, gt=0, description="L2 penalty of the regression")
    num_trees: int = Field(500, ge=1, description="of each forest")
    least_leaf: int = Field(10, ge=1, description="fewest records in a tree's leaf")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p before a logarithm")

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """One model on S_in, once as it is and once with the deployed defense around it."""
        s_in, _, s_ref = _divide(outline.known_rows, seed)
        copy_seed = int(np.random.SeedSequence([seed, _COPY]).generate_state(1)[0])
        # Of equal rows, reference and seed the two are one model, trained once.
        return tuple(
            outline.training(rows=s_in, reference_rows=s_ref, defended=defended, seed=copy_seed)
            for defended in (False, True)
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
        """Log-odds of "member", both sides weighing the same.

        Args:
            query: asked once.
            known: `trained` are the bare and the defended copy; of the membership told, that in
                `fit` is used.
            x: [N, ...] records.
            y: [N] labels.
            seed: the one `trainings` was called with; the division is derived from it again.

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members, or the two
                copies are missing or were trained on another division.
        """
        both_sides(known, "coin_invert")
        inverse = self._learnt(*_own_answers(known, seed), seed=seed)
        forest = self._forest(
            inverse.features(known.query(known.fit.x), known.fit.y),
            known.fit.is_member,
            seed=seed,
            stream=_MEMBERSHIP,
        )
        p_N = forest.predict_proba(inverse.features(query(x), y))[:, 1]
        # Where all trees agree, the odds are those of half a tree that does not.
        p_N = np.clip(p_N, 0.5 / self.num_trees, 1.0 - 0.5 / self.num_trees)
        return np.asarray(np.log(p_N) - np.log1p(-p_N), dtype=np.float64)

    def _learnt(
        self, clean_MC: NDArray[np.float64], released_MC: NDArray[np.float64], *, seed: int
    ) -> "_Inverse":
        """What the own copy's answers teach: how to tell that there is noise and to take it off."""
        noised_M = np.abs(released_MC - clean_MC).sum(axis=1) > self.same
        order_MC, log_released_MC = _falling(released_MC, self.clip)
        coin, regression = None, None
        if noised_M.sum() >= _LEAST_OF_A_KIND:
            log_clean_MC = np.log(np.clip(clean_MC, self.clip, 1.0))
            regression = Ridge(alpha=self.ridge, solver="svd").fit(
                log_released_MC[noised_M],
                np.take_along_axis(log_clean_MC, order_MC, axis=1)[noised_M],
            )
            if (~noised_M).sum() >= _LEAST_OF_A_KIND:
                coin = self._forest(log_released_MC, noised_M, seed=seed, stream=_COIN)
        return _Inverse(coin, float(noised_M.mean()), regression, self.clip)

    def _forest(
        self, feature: NDArray[Any], is_one: NDArray[np.bool_], *, seed: int, stream: int
    ) -> RandomForestClassifier:
        return RandomForestClassifier(
            self.num_trees,
            min_samples_leaf=self.least_leaf,
            class_weight="balanced",
            random_state=int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]),
        ).fit(feature, is_one)


@dataclass(frozen=True, eq=False)
class _Inverse:
    """The way back from released answers to clean ones.

    Attributes:
        coin: tells noised from clean rows of falling log-scores, both kinds weighing the same;
            None if the own copy's answers were (nearly) all of one kind.
        share: how many of those were noised.
        regression: falling log-scores, from noised to clean; None if hardly any was noised.
        clip: smallest score before a logarithm.
    """

    coin: RandomForestClassifier | None
    share: float
    regression: Ridge | None
    clip: float

    def noised(self, log_released_NC: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability [N] that rows of falling log-scores [N, C] were noised."""
        if self.coin is None:
            return np.full(len(log_released_NC), self.share)
        # Back from equal weights to the shares the own copy had.
        odds_N2 = self.coin.predict_proba(log_released_NC) * [1.0 - self.share, self.share]
        return np.asarray(odds_N2[:, 1] / odds_N2.sum(axis=1), dtype=np.float64)

    def estimate(
        self, log_released_NC: NDArray[np.float64], noised_N: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Expected clean log-scores [N, C] given falling released ones, class by class."""
        if self.regression is None:
            return log_released_NC
        # A regression's matrix product rounds equal rows differently by their place.
        log_clean_NC = log_softmax(np.round(self.regression.predict(log_released_NC), 9), axis=1)
        noised_N1 = noised_N[:, None]
        clean_NC = noised_N1 * np.exp(log_clean_NC) + (1.0 - noised_N1) * np.exp(log_released_NC)
        return np.asarray(np.log(np.clip(clean_NC, self.clip, 1.0)), dtype=np.float64)

    def features(self, released: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.float64]:
        """[N, 2C + 4]: whether the label is y, P(noised), log-scores of y, all log-scores.

        Released and estimated scores alike are in the falling order of the released ones.
        """
        order_NC, log_released_NC = _falling(np.asarray(released, dtype=np.float64), self.clip)
        noised_N = self.noised(log_released_NC)
        log_clean_NC = self.estimate(log_released_NC, noised_N)
        is_y_NC = order_NC == y[:, None]
        columns = [
            order_NC[:, 0] == y,
            noised_N,
            log_released_NC[is_y_NC],
            log_clean_NC[is_y_NC],
            *log_released_NC.T,
            *log_clean_NC.T,
        ]
        return np.stack(columns, axis=1, dtype=np.float64)


def _own_answers(known: Knowledge, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clean and released answers [M, C] of the own copy about its members and others."""
    if len(known.trained) != 2:
        raise ValueError(
            f"coin_invert got {len(known.trained)} models in known.trained; it needs the bare and "
            "the defended copy its trainings() asked for"
        )
    s_in, s_out, _ = _divide(known.rows, seed)
    for model in known.trained:
        if not np.array_equal(np.sort(model.rows), np.sort(s_in)):
            raise ValueError(
                f"a copy of coin_invert's was trained on {len(model.rows)} of the "
                f"{len(known.rows)} known rows that are not the division of seed {seed}; call "
                "score() with the seed trainings() was called with"
            )
    x, _ = known.x_of(np.concatenate([s_in, s_out]))
    bare, defended = known.trained
    return bare.answer(x), defended.answer(x)


def _divide(
    rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """S_in, S_out and S_ref, 40/40/20 of the rows, whatever their order."""
    if len(rows) < 6:
        raise ValueError(
            f"coin_invert holds {len(rows)} known rows; dividing them needs at least 6"
        )
    shuffled = np.random.default_rng([seed, _DIVISION]).permutation(np.sort(rows))
    num = len(rows) * 2 // 5
    return shuffled[:num], shuffled[num : 2 * num], shuffled[2 * num :]


def _falling(
    p_NC: NDArray[np.float64], clip: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes [N, C] by falling score, first index first, and the log-scores in that order."""
    order_NC = np.argsort(-p_NC, axis=1, kind="stable")
    return order_NC, np.log(np.clip(np.take_along_axis(p_NC, order_NC, axis=1), clip, 1.0))
