"""Timing attack: how long the service takes to answer."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._keyed import keyed_uniform
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Timing"]

_PURPOSE = 613


class Timing(Attack):
    """Score a record by the time that an answer about it takes.

    A defense that searches until it is content (MemGuard's phase I, AEPPT with
    `stop_at_boundary`) is done sooner for some answers than for others, and how soon depends on
    how sure the answer was. The released answer itself is not read, so access to labels is enough
    and there is nothing to fit: sign and threshold are calibrated by the caller.

    Records are asked about one at a time, in `repeats` rounds over all of them, so that a slow
    spell of the machine falls on one round of many records and not on all of one; the median
    over the rounds forgets it. Every round has an order of its own, keyed by record and seed.
    Answers to `warmups` queries before the first round are not timed: what is loaded or compiled
    once would be charged to whoever comes first.

    The score is measured, so it is the one exception to "same seed, same scores": only orders
    and query counts repeat. It means most on a machine that does nothing else.

    Source: methods.md section 6.12 n, ours.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    AGAINST: ClassVar[tuple[str, ...]] = ("memguard", "aeppt")
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {},
        "cpu": {"records": 200},
    }

    repeats: int = Field(5, ge=1, description="rounds, of whose times the median counts")
    warmups: int = Field(20, ge=0, description="queries before the first that is timed")
    records: int = Field(
        1000, ge=2, description="most records judged, as each is asked about by itself"
    )

    @property
    def most_records(self) -> int | None:
        return self.records

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Median seconds an answer, float64 [N], longer = higher.

        Args:
            query: asked `repeats` times a record and `warmups` times besides, a row at a time.
            known: not used.
            x: [N, ...] records.
            y: not used.
            seed: of the orders.
        """
        order_RN = keyed_uniform(x, seed, _PURPOSE, (self.repeats,)).T.argsort(axis=1)
        for row in np.resize(order_RN[0], self.warmups if len(x) else 0):
            query.timed(x[row : row + 1])
        seconds_RN = np.empty((self.repeats, len(x)))
        for order_N, seconds_N in zip(order_RN, seconds_RN, strict=True):
            for row in order_N:
                _, seconds_N[row] = query.timed(x[row : row + 1])
        return np.asarray(np.median(seconds_RN, axis=0))
