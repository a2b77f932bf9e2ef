"""Shokri's attack: shadow models, and for every class a net on the whole confidence vector."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._class_nets import Answers, Recipe, division, trained
from attacks._references import draw, held_records
from attacks.base import Attack, Classifier, Knowledge, Outline, Records

__all__ = ["Shokri"]

# Streams drawn from the attack's seed.
_RECORDS, _FIT = 0, 1
# Shadow confidences held at once in double precision: 128 MB.
_AT_ONCE = 2**24


class Shokri(Attack):
    """Learn on shadow models how members of each class are answered, and judge the target by it.

    Every shadow model answers the records the attacker holds; those it trained on are IN, the
    others OUT. Of each class a net C-64-2 learns to tell them apart by the confidence vector, whose
    entries stay in the order of the classes. Classes of few records share a net.

    Only records of the shadow models' pool are learned from: each is IN for half of the models, so
    that what kind of record it is tells nothing. Of what is left uneven (records that were the
    reference data of a shadow's own copy of the defense are neither) each step draws as many IN as
    OUT answers.

    Source: Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P 2017,
        sections V-C (shadow models) and V-E (attack model); 64 hidden units with ReLU as in
        section VI. How long the nets are trained is not given: all take equally many steps of
        Adam, and each is taken from the step at which its loss on a held-back fifth of its records
        was least. We standardise the confidences, all entries alike, as they are small where there
        are many classes.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"num_shadows": 20},
        "sound": {"num_shadows": 20},
        "cpu": {"num_shadows": 16, "num_records": 8000},
    }

    num_shadows: int = Field(
        20, ge=2, le=10_000, multiple_of=2, description="models, half of them IN"
    )
    num_records: int = Field(40_000, ge=2, description="own records learned from at most")
    min_records: int = Field(50, ge=1, description="classes of fewer records share a net")
    hidden: int = Field(64, ge=1, description="width of a net's hidden layer")
    learning_rate: float = Field(0.001, gt=0, description="Adam's step")
    batch_size: int = Field(64, ge=2, multiple_of=2, description="answers a step of each net")
    num_steps: int = Field(1000, ge=1, description="steps of each net")
    steps_between: int = Field(20, ge=1, description="steps after which the loss is looked at")

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
        """Log-odds of "member" of the net of the record's class.

        Args:
            query: asked once a record.
            known: `shadows`, and the attacker's own records; nobody's membership in the target.
            x: [N, ...] records.
            y: [N] labels; they choose the net.
            seed: draws the records, the weights and the batches.

        Returns:
            Finite float64 [N]; equal for equal answers of a class.

        Raises:
            ValueError: if the shadow models have no IN or no OUT record among the attacker's.
            FloatingPointError: if the training leaves the finite numbers.
        """
        answers = self._answers(known, np.random.default_rng([seed, _RECORDS]))
        net_of_C, records = division(answers.y, known.num_classes, self.min_records)
        recipe = Recipe(
            self.hidden,
            self.learning_rate,
            self.batch_size,
            self.num_steps,
            self.steps_between,
            known.device,
        )
        nets = trained(answers, records, recipe, np.random.default_rng([seed, _FIT]))
        confidence_NC = np.asarray(query(x), dtype=np.float64)
        score_N = np.empty(len(y))
        for net in np.unique(net_of_C[y]):
            mine = net_of_C[y] == net
            score_N[mine] = nets.log_odds(confidence_NC[mine], int(net))
        # A matrix product rounds equal rows differently by their place in the batch. In double
        # precision that is far below 1e-9, so equal answers keep equal scores and ties stay ties.
        return np.round(score_N, 9)

    def _answers(self, known: Knowledge, rng: np.random.Generator) -> Answers:
        """What the shadow models answer for records of their pool that the attacker holds.

        Raises:
            ValueError: if there are none.
        """
        shadows, held = known.shadows, held_records(known)
        in_pool = np.flatnonzero((shadows.role(held.x) == 1).any(axis=0))
        if len(in_pool) == 0:
            raise ValueError(
                f"shokri has nothing to learn from: none of the {len(held)} records the attacker "
                f"holds trained any of the {shadows.num_shadows} shadow models"
            )
        own = draw(Records(held.x[in_pool], held.y[in_pool]), self.num_records, rng)
        size = (shadows.num_shadows, len(own), known.num_classes)
        confidence_SMC = np.empty(size, dtype=np.float32)
        step = max(1, _AT_ONCE // (size[0] * size[2]))
        for start in range(0, len(own), step):
            part = slice(start, start + step)
            confidence_SMC[:, part] = shadows(own.x[part])
        return Answers(confidence_SMC, own.y, shadows.role(own.x))
