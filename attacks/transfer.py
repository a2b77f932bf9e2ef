"""Transfer attack: a model taught by the service's labels shows what the service is sure of."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Transfer"]

# The score of a record with another label than its true one. Shadows score at least log(_CLIP),
# which is -27.6, so that NATURAL_THRESHOLD lies between.
_WRONG = -100.0
_CLIP = 1e-12


class Transfer(Attack):
    """Have the service label own records, train a shadow model on them, and read its loss.

    The score is the log of the shadow's confidence in the true label, which stands for the
    confidence that the service does not tell. With `with_correctness` records that the service
    labels otherwise come last, whatever the shadow says, and all others are members unless the
    calibration records clearly favour another threshold: the gap attack is contained then. The
    AUC may still lie below the gap attack's accuracy, if the shadow orders the rest the wrong way
    round; it often does, as non-members with the right label are the easy ones. Without it the
    score is the shadow's loss alone, and the judged records are not asked about at all. PURIFIER's
    table 2 must have been made this way, its AUCs being below the gap attack.

    The records that set the caller's threshold (`known.cal`) are kept from the shadow: it would
    be surer of them than of the judged ones, and the threshold would fit no others.

    `CONTAINS_GAP` is not set: it would flag the loss alone, which never sees the released label of
    a judged record, and with correctness no training can make the score fall short of it.

    Source: Li & Zhang, "Membership Leakage in Label-Only Exposures", CCS 2021, the transfer
        attack; -100 for wrong labels, Adam, 200 epochs and batches of 128 as in the public
        code (its adversary one).
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    NATURAL_THRESHOLD: ClassVar[float | None] = -50.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "with_correctness": False,
            "epochs": 200,
            "batch_size": 128,
            "learning_rate": 1e-3,
        },
        "sound": {},
        "cpu": {},
    }

    with_correctness: bool = Field(True, description="rank records with a wrong label last")
    max_population: int = Field(
        0, ge=0, description="most records known to be no members to have labelled besides"
    )
    epochs: int | None = Field(
        None, ge=1, description="passes of the shadow, all of them; by default as the target"
    )
    batch_size: int | None = Field(
        None, ge=1, description="records a step of the shadow; by default as the target"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="of the shadow; by default as the target"
    )

    def harder(self) -> tuple[Attack, ...]:
        """Nothing: the shadow is trained as the target is, not to tell members."""
        return ()

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-confidence of the shadow in the true label, in [log 1e-12, 0], or -100.

        Args:
            query: asked once with `with_correctness`, else not at all.
            known: `query` labels the own records, each once: those of `rows` without `cal`, and up
                to `max_population` of `population` that are not among them. Nobody's membership is
                used.
            x: [N, ...] records.
            y: [N] labels.
            seed: of the shadow model.

        Returns:
            Finite float64 [N].

        Raises:
            ValueError: if there is no record to train the shadow on.
        """
        own = known.x_of(known.rows)[0]
        own = own[_not_among(own, known.cal.x)]
        if self.max_population:
            others = known.population.x
            others = others[_not_among(others, np.concatenate([own, known.cal.x]))]
            own = np.concatenate([own, others[: self.max_population]])
        if not len(own):
            raise ValueError(
                f"transfer holds {len(known.rows)} known records, none of which is left when those "
                "that set the threshold are kept back; its shadow model needs some"
            )
        recipe: dict[str, Any] = {
            name: value
            for name in ("epochs", "batch_size", "learning_rate")
            if (value := getattr(self, name)) is not None
        }
        if self.epochs is not None:
            recipe["min_loss"] = 0.0  # else the target's recipe may stop before
        label_M = known.query(own)
        (shadow,) = known.train(own, label_M, seed=seed, **recipe)
        p_y_N = shadow.answer(x)[np.arange(len(x)), y]
        score_N = np.log(np.clip(np.asarray(p_y_N, dtype=np.float64), _CLIP, 1.0))
        if self.with_correctness:
            score_N = np.where(query(x) == y, score_N, _WRONG)
        return score_N


def _not_among(x: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Bool [N]: which records are, bit for bit, none of the others."""
    return ~np.isin(_contents(x), _contents(others))


def _contents(x: NDArray[Any]) -> NDArray[Any]:
    """Each record as one value to compare, [N]."""
    flat = np.ascontiguousarray(x, dtype=np.float32).reshape(len(x), int(np.prod(x.shape[1:])))
    return flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
