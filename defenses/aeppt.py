"""AEPPT: adversarial examples against a substitute membership classifier."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from defenses._aeppt_fit import SUBSTITUTE, Answers, Recipe, chosen_step, trained
from defenses._aeppt_steps import Guard, Loss, Post, Substitute, finished, perturbed
from defenses._confidence import checked_distribution
from defenses._mlp import balanced_accuracy, weights_of
from defenses._prepared import once_per
from defenses.base import Defense, Noise, Setting

__all__ = ["Aeppt"]

_PREFIX = "substitute."
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
    judges. Here the reference records stand for those in every preset, "paper" too (the fitting
    part; the validation part stays an outsider). An experiment that gives it `reference:
    nonmembers` has it as published, and its results flagged leaky.

    Source: AEPPT sections 4.3, 4.4 (algorithm 1) and 5.2. The optimiser, its batches
        and the scale of the substitute's inputs are ours.
    """

    VERSION: ClassVar[int] = 2
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
        "keep_argmax",
        description="none, as published; keep_argmax: the last iterate with the label",
    )
    stop_at_boundary: bool = Field(
        False, description="rest once 0.05 beyond the substitute's boundary instead of going on"
    )
    label_at_fit: Literal["true", "predicted"] = Field(
        "true", description="the label the substitute learns with; it answers about the predicted"
    )
    epochs: int = Field(
        100, ge=1, description="of the substitute and of the classifier that judges a step"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's, of both")
    batch_size: int = Field(
        512, ge=2, description="of both; smaller on few records, for 20 steps an epoch"
    )
    judge_width: float = Field(
        1.0, gt=0, description="factor on the hidden widths of the classifier that judges a step"
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
        return {"iterations": 50, "judge_width": 0.5} if name == "cpu" else {}

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
        member, other, val = (
            Answers(checked_distribution(setting.answer(r.x), setting.num_classes), r.y)
            for r in groups
        )
        fit_on = (member, other)
        if self.label_at_fit == "predicted":
            fit_on = (member.by_prediction(), other.by_prediction())
        # The epoch is chosen as the substitute is used: with predicted labels.
        judged_on = (member.by_prediction(), val.by_prediction())
        recipe = Recipe(self.epochs, self.learning_rate, self.batch_size, setting.device)
        draws = np.random.default_rng([seed, *b"aeppt"]).integers(2**63, size=2)
        net = trained(SUBSTITUTE, fit_on, judged_on, recipe, seed=int(draws[0]))
        state = {_PREFIX + name: value for name, value in weights_of(net).items()}
        if self.step is not None:
            return state | {"step": np.array(self.step)}
        substitute = _substitute(state)

        def release(
            c_NC: NDArray[np.float64], uniform_NT: NDArray[np.float64], step: float
        ) -> NDArray[np.float64]:
            return self._released(c_NC, uniform_NT, substitute, step)

        step, accuracy = chosen_step(
            release,
            member,
            other,
            val,
            recipe,
            width=self.judge_width,
            iterations=self.iterations,
            seed=int(draws[1]),
        )
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
            found |= {
                "validation_accuracy_clean": float(clean),
                "validation_accuracy": float(moved),
            }
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


def _substitute(state: Mapping[str, NDArray[Any]]) -> Substitute:
    arrays = {
        k.removeprefix(_PREFIX): np.asarray(v) for k, v in state.items() if k.startswith(_PREFIX)
    }
    return once_per(arrays["last.weight"], "aeppt", lambda: Substitute.of(arrays))
