"""AEPPT: adversarial examples against a substitute membership classifier."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from defenses._aeppt_steps import Guard, Loss, Post, Substitute, finished, perturbed
from defenses._confidence import checked_distribution
from defenses._mlp import (
    TwoBranch,
    balanced_accuracy,
    initialised,
    train_on_membership,
    weights_of,
)
from defenses._prepared import once_per
from defenses.base import Defense, Noise, Setting

__all__ = ["Aeppt"]

_PREFIX = "substitute."
_TOLERANCE = 0.01
_BISECTIONS = 5
_MIN_BATCH, _STEPS_PER_EPOCH = 16, 20
# The published step sizes; the papers' datasets by those that stand in for them.
_STEPS = {"cifar100": 9e-4, "purchase100": 2e-5}
_STANDS_FOR = {
    "retail100": "purchase100",
    "clinc100": "purchase100",
    "tinyimagenet32_100a": "cifar100",
}


class Aeppt(Defense):
    """Step every confidence away from what a substitute membership classifier decides about it.

    Each step adds the sign of the gradient times `step` times one random number; the loss is that
    of the substitute's own decision about the clean answer, and it is ascended. The released sum
    tells the direction of the steps unless `post` hides it, and near-ties change labels unless
    `guard` keeps them.

    The published substitute learns from the members and from the very non-members an evaluation
    judges. A defender has no way to those here: in every preset, "paper" too, the reference
    records stand for them (the fitting part; the validation part stays an outsider).

    Source: AEPPT sections 4.3, 4.4 (algorithm 1) and 5.2. The optimiser and its batches are ours.
    """

    VERSION: ClassVar[int] = 1
    NOISE: ClassVar[Mapping[str, str]] = {
        "paper": "fresh",
        "sound": "per_input",
        "cpu": "per_input",
    }

    step: float | None = Field(
        None,
        ge=0,
        description="epsilon, the longest step of a score; None: the smallest that leaves a "
        "membership classifier of the defender's own, fitted on clean answers, within 0.01 of "
        "an accuracy of 0.5 on records it was not fitted on",
    )
    iterations: int = Field(100, ge=1, description="T, steps an answer")
    loss: Loss = Field(
        "bce_logits",
        description="bce_prob_f32: on a float32 sigmoid, whose gradient vanishes where it "
        "saturates, as published; bce_logits: the same loss without that",
    )
    post: Post = Field(
        "renorm",
        description="none: clipped only, as published; renorm: divided by the sum; simplex: the "
        "nearest distribution",
    )
    guard: Guard = Field(
        "keep_argmax", description="none, as published; keep_argmax: the last iterate with the label"
    )
    stop_at_boundary: bool = Field(
        False, description="rest once 0.05 beyond the substitute's boundary instead of going on"
    )
    label_at_fit: Literal["true", "predicted"] = Field(
        "true", description="the label the substitute learns with; it answers about the predicted"
    )
    epochs: int = Field(100, ge=1, description="of the substitute and of the classifier for None")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's, of both")
    batch_size: int = Field(
        512, ge=2, description="of both; smaller on few records, for 20 steps an epoch"
    )

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Field values of a preset; the published step where the paper has the dataset.

        That of Purchase belongs to a target with a Tanh after its last layer; on logits without
        bound it changes little.
        """
        if name == "paper":
            return {
                "step": _STEPS.get(_STANDS_FOR.get(dataset, dataset)),
                "loss": "bce_prob_f32",
                "post": "none",
                "guard": "none",
            }
        return {"iterations": 50} if name == "cpu" else {}

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Train the substitute on members and reference records, and choose the step.

        Returns:
            `substitute.*`: its parameters, float32; `step`; and, if the step was chosen,
            `validation_accuracy` [2] of the classifier it was chosen with, on clean and on
            perturbed answers.

        Raises:
            ValueError: if there are no members or too few reference records.
        """
        groups = (setting.members, setting.reference.fit, setting.reference.val)
        if not all(len(records) for records in groups):
            raise ValueError(
                "aeppt needs members and reference records to fit and validate, got "
                f"{', '.join(str(len(records)) for records in groups)}; enlarge the split"
            )
        known = [_Known.of(setting, records.x, records.y) for records in groups]
        substitute = self._trained((256,), (256,), (64,), known, setting, seed, b"substitute")
        state = {_PREFIX + name: value for name, value in weights_of(substitute).items()}
        if self.step is not None:
            return state | {"step": np.array(self.step)}
        step, accuracy = self._chosen_step(known, state, setting, seed)
        return state | {"step": np.array(step), "validation_accuracy": np.array(accuracy)}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Perturbed confidences [N, C] in [0, 1]; rows sum to 1 unless `post` is none.

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        substitute = _substitute(state)
        c_NC = checked_distribution(confidence, substitute.net.num_inputs)
        uniform_NT = noise.uniform((len(c_NC), self.iterations))
        return self._released(c_NC, uniform_NT, substitute, float(state["step"]))

    def diagnose(
        self, setting: Setting, state: Mapping[str, NDArray[Any]], *, seed: int
    ) -> dict[str, float]:
        """The step; balanced accuracies of the substitute and of the classifier it was chosen with.

        `substitute_accuracy` is on members, which it was fitted on, and R_val.
        """
        substitute, odds = _substitute(state), []
        for x in (setting.members.x, setting.reference.val.x):
            c_NC = checked_distribution(setting.answer(x), setting.num_classes)
            odds.append(substitute.log_odds(c_NC, c_NC.argmax(axis=1)))
        found = {"step": float(state["step"]), "substitute_accuracy": balanced_accuracy(*odds)}
        if "validation_accuracy" in state:
            clean, moved = np.asarray(state["validation_accuracy"])
            found |= {"validation_accuracy_clean": float(clean), "validation_accuracy": float(moved)}
        return found

    def _released(
        self,
        c_NC: NDArray[np.float64],
        uniform_NT: NDArray[np.float64],
        substitute: Substitute,
        step: float,
    ) -> NDArray[np.float64]:
        if step == 0:
            return c_NC.copy()
        moved_NC = perturbed(
            c_NC,
            uniform_NT,
            substitute,
            step,
            loss=self.loss,
            guard=self.guard,
            stop_at_boundary=self.stop_at_boundary,
        )
        return finished(moved_NC, c_NC.argmax(axis=1), self.post, self.guard)

    def _trained(
        self,
        prediction: tuple[int, ...],
        label: tuple[int, ...],
        joint: tuple[int, ...],
        known: "list[_Known]",
        setting: Setting,
        seed: int,
        purpose: bytes,
    ) -> TwoBranch:
        """A classifier fitted on known[0] (members) and known[1], its epoch chosen with known[2].

        A fourth set, if there is one, stands for the members when the epoch is chosen.
        """
        draws = np.random.default_rng([seed, *purpose]).integers(2**63, size=2)
        net = initialised(
            lambda: TwoBranch(setting.num_classes, prediction, label, joint), int(draws[0])
        ).to(setting.device)
        members, others, outsiders, *held_out = known
        num_records = len(members.y_N) + len(others.y_N)
        # The label the net is asked about later: the attacker's own, or for the substitute the
        # predicted one.
        true_at_fit = bool(held_out) or self.label_at_fit == "true"
        train_on_membership(
            net,
            members.tensors(setting, true_label=true_at_fit),
            others.tensors(setting, true_label=true_at_fit),
            (
                (held_out or [members])[0].tensors(setting, true_label=bool(held_out)),
                outsiders.tensors(setting, true_label=bool(held_out)),
            ),
            optimizer=torch.optim.Adam(net.parameters(), lr=self.learning_rate, fused=True),
            epochs=self.epochs,
            # A few steps an epoch on small sets would leave it where it began.
            batch_size=min(self.batch_size, max(_MIN_BATCH, num_records // _STEPS_PER_EPOCH)),
            seed=int(draws[1]),
        )
        return net
