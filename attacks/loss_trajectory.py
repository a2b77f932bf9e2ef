"""Loss trajectory: how the record's loss falls while a copy of the target is distilled."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from attacks._epochs import Kept
from attacks._membership_net import balanced_loss, batches, relu_layers
from attacks.base import Attack, Classifier, Knowledge, Model, Outline

__all__ = ["LossTrajectory"]

_Width = Annotated[int, Field(ge=1)]
_Rows = NDArray[np.int64]
# Held rows: the shadow's members, others, those to distil on, the shadow's defense's reference.
_Division = tuple[_Rows, _Rows, _Rows, _Rows]
# Streams drawn from the attack's seed.
_DIVISION, _SHADOW, _AUXILIARY, _DISTIL, _FIT = 0, 1, 2, 3, 4
_LEAST_ROWS = 20
_HELD_OUT = 0.2
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_ROWS_AT_ONCE = 8192
_NO_DEVIATION = 1e-9  # of losses that are all the same, but for rounding


class LossTrajectory(Attack):
    """Distil the target, and learn on a shadow model how losses of members fall meanwhile.

    The attacker divides the records it holds into S_in and S_out, ignoring their membership in
    the target, and trains a shadow model on S_in. The target is distilled: a model of its
    architecture learns its answers about auxiliary records; and likewise the shadow. A record's
    features are its losses under the distilled model at `snapshots` moments of that training,
    and under the model itself. A net learns from the shadow's how S_in differs from S_out, and
    judges the target's.

    Auxiliary records are not in S_in or S_out. They are the population's of no other role if those
    are as many as the shadow has members; else a fifth of the held records is kept for it as well.
    If the attacker builds its own copy of the deployed defense, a fifth is its reference data.

    Source: Liu, Zhao, Backes & Zhang, "Membership Inference Attacks by Exploiting Loss
        Trajectory", CCS 2022, section 4. The public code reports the best epoch of the attack net
        on the evaluation records; we choose it on a fifth of S_in and S_out that is not fitted on.
        We standardise losses, normalise the answers that are learned, and shrink batches on small
        sets so that an epoch has 20 steps. The attack net's widths are those of public ports.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-shadow"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {"snapshots": 25},
        "cpu": {"snapshots": 10, "distil_epochs": 40, "num_auxiliary": 4000},
    }

    snapshots: int = Field(100, ge=1, description="moments of the distillation a loss is taken at")
    distil_epochs: int = Field(100, ge=1, description="passes over the auxiliary records")
    num_auxiliary: int = Field(100_000, ge=1, description="most auxiliary records")
    hidden: tuple[_Width, ...] = Field(
        (512, 128, 32), description="widths of the attack net's hidden layers"
    )
    learning_rate: float = Field(0.01, gt=0, description="SGD's step for the attack net")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty on the attack net")
    batch_size: int = Field(128, ge=2, description="most records a step of the attack net")
    epochs: int = Field(100, ge=1, description="passes of the attack net, the best is kept")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest p in a loss")

    @model_validator(mode="after")
    def _enough_epochs(self) -> Self:
        if self.snapshots > self.distil_epochs:
            raise ValueError(
                f"snapshots is {self.snapshots}, more than the {self.distil_epochs} distil_epochs"
            )
        return self

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """One shadow model on S_in, with its own copy of the defense if `outline.adaptive`."""
        rows, adaptive = outline.known_rows, outline.adaptive
        num_spare = len(np.setdiff1d(outline.population_rows, rows))
        s_in, _, _, s_ref = _divide(rows, adaptive=adaptive, spare=True, seed=seed)
        if num_spare < len(s_in):
            s_in, _, _, s_ref = _divide(rows, adaptive=adaptive, spare=False, seed=seed)
        asked: dict[str, Any] = {"rows": s_in, "seed": _derived(seed, _SHADOW)}
        if adaptive:
            asked |= {"reference_rows": s_ref, "defended": True}
        return (outline.training(**asked),)

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member".

        Args:
            query: asked once.
            known: `trained[0]` is the shadow model; `known.query` is asked once about every
                auxiliary record. Membership in the target is not used.
            x: [N, ...] records.
            y: [N] labels.
            seed: the one `trainings` was called with; the division is derived from it again.

        Returns:
            Finite float64 [N], any sign.

        Raises:
            ValueError: if the shadow model is missing or was trained on another division.
            FloatingPointError: if the attack net's training leaves the finite numbers.
        """
        if len(known.trained) != 1:
            raise ValueError(
                f"loss_trajectory got {len(known.trained)} shadow models in known.trained; it "
                "needs the one its trainings() asked for"
            )
        shadow = known.trained[0]
        s_in, s_out, s_aux, _ = _division_of(shadow.rows, known.rows, seed)
        x_aux = self._auxiliary(known, s_aux, seed)
        students = self._distilled(known, x_aux, shadow.answer(x_aux), seed)
        x_M, y_M = known.x_of(np.concatenate([s_in, s_out]))
        loss_MT = self._losses(students, shadow.answer(x_M), x_M, y_M)
        is_in_M = np.arange(len(y_M)) < len(s_in)
        net = self._trained(loss_MT, is_in_M, known.device, np.random.default_rng([seed, _FIT]))
        students = self._distilled(known, x_aux, known.query(x_aux), seed)
        loss_NT = self._losses(students, query(x), x, y)
        # A matrix product rounds equal rows differently by their place in the batch.
        return np.round(_log_odds(net.double(), loss_NT, known.device), 9)

    def _auxiliary(self, known: Knowledge, s_aux: _Rows, seed: int) -> NDArray[Any]:
        """Records to distil on: those kept for it, and the population's that are not held rows."""
        population = known.population.x
        # Compared as bytes: the population does not tell its rows. Copies of held records go too.
        held = {record.tobytes() for record in known.x_of(known.rows)[0]}
        is_new = np.fromiter((r.tobytes() not in held for r in population), bool, len(population))
        found = np.concatenate([known.x_of(s_aux)[0], population[is_new]])
        if not len(found):
            raise ValueError("loss_trajectory has nothing to distil on: all spare records are held")
        if len(found) <= self.num_auxiliary:
            return found
        rng = np.random.default_rng([seed, _AUXILIARY])
        return found[np.sort(rng.choice(len(found), self.num_auxiliary, replace=False))]

    def _distilled(
        self, known: Knowledge, x_aux: NDArray[Any], answers: NDArray[Any], seed: int
    ) -> tuple[Model, ...]:
        """Snapshots of a model that learns the answers.

        Target and shadow are distilled from the same weights in the same batches, so that
        trajectories differ by what was learned.
        """
        return known.train(
            x_aux,
            _distributions(answers),
            seed=_derived(seed, _DISTIL),
            snapshots=self.snapshots,
            epochs=self.distil_epochs,
        )

    def _losses(
        self,
        students: tuple[Model, ...],
        answers: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """[N, snapshots + 1] cross entropies, those of the model's own answers last."""
        loss_NT = np.empty((len(y), self.snapshots + 1))
        for t, model in enumerate(students):
            loss_NT[:, t] = model.answer(x)[np.arange(len(y)), y]
        loss_NT[:, -1] = answers[np.arange(len(y)), y]
        np.clip(loss_NT, self.clip, 1.0, out=loss_NT)
        return np.asarray(-np.log(loss_NT))

    def _trained(
        self,
        loss: NDArray[np.float64],
        is_in: NDArray[np.bool_],
        device: str,
        rng: np.random.Generator,
    ) -> "_Net":
        """The attack net of the best epoch on a fifth of the records, fitted on the others."""
        held_out = np.zeros(len(is_in), dtype=bool)
        for side in (np.flatnonzero(is_in), np.flatnonzero(~is_in)):
            held_out[rng.permutation(side)[: max(1, round(_HELD_OUT * len(side)))]] = True
        sides = np.flatnonzero(is_in & ~held_out), np.flatnonzero(~is_in & ~held_out)
        # Weights are drawn on the CPU, so that they do not depend on the device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            net = _Net(loss[~held_out], self.hidden)
        net.to(device)
        optimiser = torch.optim.SGD(
            net.parameters(), self.learning_rate, self.momentum, 0.0, self.weight_decay
        )
        loss_MT = torch.tensor(loss, dtype=torch.float32, device=device)
        num_fitted = sum(len(side) for side in sides)
        size = min(self.batch_size, max(_MIN_BATCH, num_fitted // _STEPS_PER_EPOCH))
        num_batches = max(1, min(round(num_fitted / size), *(len(side) for side in sides)))
        kept = Kept(is_in[held_out], balanced_loss)
        for epoch in range(self.epochs):
            for members, others in batches(sides, num_batches, rng):
                rows = torch.from_numpy(np.concatenate([members, others])).to(device)
                optimiser.zero_grad()
                torch.autograd.backward(balanced_loss(net(loss_MT[rows]), len(members)))
                optimiser.step()
            log_odds = _log_odds(net, loss[held_out], device)
            if not np.isfinite(log_odds).all():
                raise FloatingPointError(
                    f"loss_trajectory's net left the finite numbers in epoch {epoch + 1}; use a "
                    f"smaller learning_rate than {self.learning_rate:g}"
                )
            kept.consider(epoch, log_odds, net)
        net.load_state_dict(kept.choice())
        return net


class _Net(nn.Module):
    """Log-odds [N] of "member" from losses [N, T], each standardised by those it was made with."""

    def __init__(self, loss: NDArray[np.float64], hidden: tuple[int, ...]) -> None:
        super().__init__()
        deviation = loss.std(axis=0)
        deviation[deviation < _NO_DEVIATION] = 1.0
        self.register_buffer("mean", torch.tensor(loss.mean(axis=0), dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))
        widths = (loss.shape[1], *hidden)
        self.layers = nn.Sequential(*relu_layers(*widths), nn.Linear(widths[-1], 1))

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        standardised = (loss - self.get_buffer("mean")) / self.get_buffer("deviation")
        log_odds: torch.Tensor = self.layers(standardised)[:, 0]
        return log_odds


def _divide(rows: _Rows, *, adaptive: bool, spare: bool, seed: int) -> _Division:
    """Halves; less a fifth to distil on unless there are spare records, a fifth if adaptive.

    Sorted first, so that the division depends on which rows are held and not on their order. An
    odd row goes to S_out.
    """
    if len(rows) < _LEAST_ROWS:
        raise ValueError(
            f"loss_trajectory divides {_LEAST_ROWS} known rows or more, not {len(rows)}"
        )
    num_aux = 0 if spare else len(rows) // 5
    num_ref = len(rows) // 5 if adaptive else 0
    num_in = (len(rows) - num_aux - num_ref) // 2
    # Each of the four ways has an order of its own, so that S_in tells which it was.
    rng = np.random.default_rng([seed, _DIVISION, int(adaptive), int(spare)])
    s_in, s_aux, s_ref, s_out = np.split(
        rng.permutation(np.sort(rows)), np.cumsum([num_in, num_aux, num_ref])
    )
    return s_in, s_out, s_aux, s_ref


def _division_of(s_in: _Rows, rows: _Rows, seed: int) -> _Division:
    """The division whose S_in these rows are."""
    for adaptive, spare in itertools.product((False, True), repeat=2):
        parts = _divide(rows, adaptive=adaptive, spare=spare, seed=seed)
        if np.array_equal(np.sort(parts[0]), np.sort(s_in)):
            return parts
    raise ValueError(
        f"loss_trajectory's shadow model was trained on {len(s_in)} of the {len(rows)} known rows "
        f"that are not the division of seed {seed}; call score() with the seed trainings() was "
        "called with"
    )


def _distributions(answers: NDArray[Any]) -> NDArray[np.float64]:
    """Answers [N, C] as rows that sum to 1; what says nothing becomes uniform."""
    p_NC = np.maximum(np.asarray(answers, dtype=np.float64), 0.0)
    total_N1 = p_NC.sum(axis=1, keepdims=True)
    return np.where(total_N1 > 0, p_NC / np.where(total_N1 > 0, total_N1, 1.0), 1 / p_NC.shape[1])


@torch.no_grad()
def _log_odds(net: _Net, loss: NDArray[np.float64], device: str) -> NDArray[np.float64]:
    """The net's log-odds [N] for losses [N, T], in pieces that fit in memory."""
    dtype = net.get_buffer("mean").dtype
    pieces = [
        net(torch.tensor(loss[start : start + _ROWS_AT_ONCE], dtype=dtype, device=device))
        for start in range(0, len(loss), _ROWS_AT_ONCE)
    ]
    return np.asarray(torch.cat(pieces).cpu().numpy(), dtype=np.float64)


def _derived(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
