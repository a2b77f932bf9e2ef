"""LiRA: how likely is the answer among models with the record, and among models without."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._likelihood import lira, logit_confidence
from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["Lira"]

# From this many shadow models on, half of them give a record a deviation of its own.
_OWN_VARIANCE_FROM = 64
# Shadow confidences held at once: 128 MB.
_AT_ONCE = 2**24
_MAX_QUERIES = 18


class Lira(Attack):
    """Compare the target's answer with shadow models that had the record and that had not.

    The signal phi, the logit of the true label's confidence, is close to Gaussian over
    retrained models. The score is the log-likelihood ratio of phi under the record's IN and OUT
    shadow models (online), or how far phi lies above the OUT models (offline).

    With one deviation for all records, it is pooled over the records the attacker holds and not
    over the judged ones, so that a score does not depend on which records are judged together
    and a threshold set on known records holds for others.

    On images several queries a record are asked, in this order: the record, its mirror image,
    then the same pair moved by `shift` pixels right, left, down, up, and along the four diagonals
    (right-down, left-down, right-up, left-up), edges reflected; 18 in all.

    If the attacker builds its own copies of the deployed defense, a shadow model's OUT records
    that were its defense's reference data count as neither IN nor OUT for it.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
        algorithm 1 (online) and section IV-C; with several queries we average their log-ratios
        instead of fitting a multivariate Gaussian, which would need more models than queries.
    """

    VERSION: ClassVar[int] = 2
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_shadows": 256},
        "sound": {"num_shadows": 64},
        "cpu": {"num_shadows": 16},
    }

    num_shadows: int = Field(
        16, ge=4, le=10_000, multiple_of=2, description="models, half of them IN"
    )
    mode: Literal["online", "offline"] = Field(
        "online", description="offline reads OUT models only, and is one-sided"
    )
    global_variance: bool | None = Field(
        None, description="one deviation for all records; by default below 64 shadow models"
    )
    num_queries: int = Field(
        1, ge=1, le=_MAX_QUERIES, description="versions of a record asked about; above 1 for images"
    )
    shift: int = Field(1, ge=1, description="pixels a version is moved by")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p, and sum of the other p")

    def fault(self, shape: tuple[int, ...], *, adaptive: bool) -> str:
        """Records that are no images, or too few shadow models.

        With own copies of the defense every other OUT model of a record has it as reference data,
        so that it is OUT of a quarter of the models, rounded down. Two are needed for a deviation:
        of each record, or of some records where it is pooled. Without them half are IN, half OUT.
        """
        if self.num_queries > 1 and len(shape) != 3:
            return (
                f"num_queries is {self.num_queries}, but records have shape {list(shape)}; only "
                "images [channels, height, width] can be mirrored and moved: use 1"
            )
        least = 6 if self._pools_variance else 8
        if adaptive and self.num_shadows < least:
            which = "one deviation for all records" if least == 6 else "a deviation of its own"
            return (
                f"num_shadows is {self.num_shadows}; with adaptive, half of the models a record is "
                f"OUT of have it as reference data of their defense, and {which} takes two that "
                f"do not: use {least} or more"
            )
        return ""

    @property
    def _pools_variance(self) -> bool:
        if self.global_variance is None:
            return self.num_shadows < _OWN_VARIANCE_FROM
        return self.global_variance

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """The shadow models, with their own copies of the defense if `outline.adaptive`."""
        return outline.shadows(self.num_shadows, defended=outline.adaptive)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-likelihood ratio of "member", in nats.

        Args:
            query: asked `num_queries` times a record.
            known: `shadows`; of the known records only answers of shadow models are used, for
                the pooled deviation, never their membership.
            x: [N, ...] records; [N, channels, height, width] for several queries.
            y: [N] labels.
            seed: not used: nothing is drawn.

        Returns:
            Finite float64 [N]; at most 0 offline.

        Raises:
            ValueError: if several queries are wanted of records that are no images, there are not
                `num_shadows` shadow models, or records have too few IN or OUT among them.
        """
        if self.num_queries > 1 and x.ndim != 4:
            raise ValueError(
                f"lira's num_queries is {self.num_queries} but records have shape {x.shape[1:]}; "
                "only images [channels, height, width] can be mirrored and moved: use 1"
            )
        if known.shadows.num_shadows != self.num_shadows:
            raise ValueError(
                f"lira got {known.shadows.num_shadows} shadow models in known.shadows; it asked "
                f"for num_shadows = {self.num_shadows}"
            )
        target_phi_NQ = np.stack(
            [
                logit_confidence(query(self._version(x, q)), y, clip=self.clip)
                for q in range(self.num_queries)
            ],
            axis=1,
        )
        return lira(
            target_phi_NQ,
            *self._signals(known, x, y),
            mode=self.mode,
            global_variance=self._pools_variance,
            pool=self._signals(known, *known.x_of(known.rows)) if self._pools_variance else None,
        )

    def _signals(
        self, known: Knowledge, x: NDArray[Any], y: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Signals [S, N, Q] of the shadow models, and where they are IN and OUT, [S, N]."""
        shadows = known.shadows
        phi_SNQ = np.empty((shadows.num_shadows, len(x), self.num_queries))
        step = max(1, _AT_ONCE // (shadows.num_shadows * known.num_classes))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            for q in range(self.num_queries):
                confidence_SnC = shadows(self._version(x[part], q))
                for phi_NQ, confidence_nC in zip(phi_SNQ, confidence_SnC, strict=True):
                    phi_NQ[part, q] = logit_confidence(confidence_nC, y[part], clip=self.clip)
        role_SN = shadows.role(x)
        return phi_SNQ, role_SN == 1, role_SN == 0

    def _version(self, x: NDArray[Any], q: int) -> NDArray[Any]:
        """The records as query number q asks about them."""
        if q == 0:
            return x
        moves = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        (right, down), mirrored = moves[q // 2], q % 2 == 1
        image = x[..., ::-1] if mirrored else x
        d = self.shift
        wide = np.pad(image, ((0, 0), (0, 0), (d, d), (d, d)), mode="reflect")
        top, left = d - d * down, d - d * right
        height, width = x.shape[2:]
        return np.ascontiguousarray(wide[:, :, top : top + height, left : left + width])
