"""The seam of an attack: what it may ask, what it may know, what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

__all__ = [
    "Attack",
    "Classifier",
    "Foreign",
    "Kind",
    "Knowledge",
    "Known",
    "Model",
    "Outline",
    "Planning",
    "Records",
    "Shadows",
    "Trained",
]

Kind = Literal["binary", "image", "continuous"]


class Classifier(Protocol):
    """A service that answers; the only access a black-box attacker has.

    Calling it with x [N, ...] returns float64 confidences [N, C] (rows as released, which for some
    defenses do not sum to 1), or int64 labels [N] when the attack's `ACCESS` is "label".
    Every row asked counts as one query.
    """

    @property
    def num_queries(self) -> int: ...

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]: ...

    def timed(self, x: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """An answer computed afresh, and the seconds it took; counts as a call does."""
        ...


@dataclass(frozen=True, eq=False)
class Records:
    """Records of which nothing is told but x [N, ...] float32 and y [N] int64."""

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Known:
    """Records whose membership in the target's training set the attacker knows.

    Members and non-members come shuffled together. x is [N, ...] float32, y is [N] int64,
    is_member is [N] bool.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    is_member: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.y)


class Model(Protocol):
    """Something the attacker trained and can ask without limit."""

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [N, C] for any x [N, ...]."""
        ...


class Trained(Protocol):
    """A model (with its own defense, if it has one) that was trained because an attack asked."""

    @property
    def rows(self) -> NDArray[np.int64]: ...

    @property
    def weights(self) -> Mapping[str, NDArray[Any]]: ...

    @property
    def state(self) -> Mapping[str, NDArray[Any]]: ...

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [N, C] for any x [N, ...]."""
        ...


class Shadows(Protocol):
    """Shadow models in the half-split design: every judged record trained half of them.

    Their use is open to attacks whose `trainings` asked for `outline.shadows(...)`. With own
    copies of the defense, `shadows(x)` gives defended answers, and part of a model's OUT records
    are its defense's reference data.
    """

    @property
    def num_shadows(self) -> int: ...

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [S, N, C] of any x [N, ...]; dataset records come from the store."""
        ...

    def role(self, x: NDArray[Any]) -> NDArray[np.int8]:
        """What each record was to each model, int8 [S, N]: 1 in, 0 out, -1 reference.

        Records outside the pool are out.
        """
        ...


class Foreign(Protocol):
    """Another dataset, all of which the attacker holds; rows are numbered as there."""

    @property
    def rows(self) -> NDArray[np.int64]: ...

    def x_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Records and labels."""
        ...


class Outline(Protocol):
    """What is known while planning: row numbers, labels and sizes, never an answer.

    Attributes:
        known_rows: rows of the dataset the attacker holds (fit and calibration parts of
            members and non-members, pooled and shuffled; membership is not told).
        population_rows: rows of the dataset nobody trained on and nobody is judged by, which
            the attacker holds too; sorted, often none.
        num_members: how many records the target was trained on.
        labels: int64 [n], the class of every row of the dataset.
        num_classes: C.
        adaptive: whether the attacker builds its own copy of the deployed defense.
    """

    @property
    def known_rows(self) -> NDArray[np.int64]: ...

    @property
    def population_rows(self) -> NDArray[np.int64]: ...

    @property
    def num_members(self) -> int: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def adaptive(self) -> bool: ...

    def training(
        self,
        *,
        rows: NDArray[np.int64],
        reference_rows: NDArray[np.int64] | None = None,
        defended: bool = False,
        dataset: str | None = None,
        seed: int,
    ) -> Any:
        """A training task: the target's architecture and recipe on `rows`.

        With `dataset`, rows are those of `foreign(dataset)`, and architecture and recipe are that
        dataset's own.

        With `defended`, the attacker's own copy of the deployed defense is fitted around it, with
        `reference_rows` as the defender's reference data. What comes back at run time in
        `known.trained`, in the order returned by `trainings`, is a `Trained`.
        """
        ...

    def foreign(self, dataset: str) -> Foreign:
        """Another dataset to train on, which the attack must name in `foreign_datasets`."""
        ...

    def shadows(self, num_shadows: int, *, defended: bool = False) -> tuple[Any, ...]:
        """Training tasks of shadow models in the half-split design, shared by all attacks.

        They use no membership in the target. At run time they are `known.shadows`. `num_shadows`
        is even: models 2i and 2i + 1 train on complementary halves of the pool.
        """
        ...


class Knowledge(Protocol):
    """All the data and models the threat model grants; what it does not raises PermissionError.

    `fit` and `cal` tell membership in the target and are for BB-score, BB-label and BB-adaptive;
    `population` is for all but BB-blind.

    Attributes:
        fit: known records to fit on.
        cal: known records for early stopping, thresholds and signs only.
        population: records known to be no members: those for fitting and, shuffled among them,
            the dataset's rows of no other role. None of them is ever judged.
        query: the deployed service as asked about known records (the undefended one when the
            experiment says `fit_on: clean`; with `adaptive`, the attacker's own defended copy,
            to whose members and non-members `fit` and `cal` then refer).
        num_classes: C.
        kind: of the records: "binary" (bits), "image" (pixels in [0, 1], [channels, height,
            width]) or "continuous".
        trained: what `trainings` asked for, in that order.
        rows: int64, the dataset rows whose membership in the target the attacker was told; the
            `known_rows` of the outline.
        x_of: maps dataset rows [n] to their records x [n, ...] and labels y [n]. Only rows the
            attacker holds may be asked for (`known_rows` and `population_rows` of the outline);
            others raise `PermissionError`.
        device: where torch code should run.
        shadows: the shadow models `trainings` asked for; asking without having asked raises.
    """

    @property
    def fit(self) -> Known: ...

    @property
    def cal(self) -> Known: ...

    @property
    def population(self) -> Records: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def query(self) -> Classifier: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def trained(self) -> tuple[Trained, ...]: ...

    @property
    def rows(self) -> NDArray[np.int64]: ...

    def x_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]: ...

    @property
    def device(self) -> str: ...

    def foreign(self, dataset: str) -> Foreign:
        """Another dataset that `trainings` asked to train on; others raise `PermissionError`."""
        ...

    @property
    def shadows(self) -> Shadows: ...

    def train(
        self,
        x: NDArray[Any],
        targets: NDArray[Any],
        *,
        seed: int,
        snapshots: int = 1,
        **recipe: Any,
    ) -> tuple[Model, ...]:
        """Train a model of the target's architecture, for what is known only after answers.

        Models that do not depend on answers are asked for by `trainings`, which trains them in
        parallel and keeps them.

        Args:
            x: [N, ...] records.
            targets: classes int64 [N], or soft labels float [N, C].
            seed: of its weights and batches.
            snapshots: how often the model is kept, after equal parts of the training; the last
                is the finished one. At most the number of epochs.
            recipe: fields of the target's recipe to change (`epochs`, `learning_rate`, ...).

        Returns:
            The model as it was at each snapshot, in order.
        """
        ...


class Attack(BaseModel):
    """An attack: its fields are the paper's hyper-parameters.

    A membership inference attack defines `score`. Others define `reconstruct` (model inversion)
    or `infer` (attribute inference) instead.

    Class variables:
        VERSION: bump when the same fields would give other scores.
        THREAT_MODEL: an identifier of methods.md section 1, a column of the results.
        ACCESS: "score" if the service tells confidences, "label" if it tells only labels.
        THRESHOLD: None if the decision threshold is calibrated on `known.cal` by the caller;
            a number if `score` has a threshold of its own (score > THRESHOLD says "member").
        NATURAL_THRESHOLD: where a learned score is itself undecided (0 for log-odds), or None. It
            is used unless the calibration records clearly favour another.
        CONTAINS_GAP: whether it sees both y and the released label, so that falling below the gap
            attack shows that it was under-trained (its cell is flagged `invalid`).
        KINDS: the kinds of records it works on; a dataset of another kind has no cell for it.
        AGAINST: the defenses it is made for, by name; empty for all. An experiment's `against`
            goes before it.
        LEARNS: whether it fits on `known.fit` through `known.query`. Its adaptive form is then
            fitted on a copy of the whole service that the attacker builds on records it holds.
            Attacks that train models (`trainings`) defend those instead.
        PRESETS: field values by preset name ("paper", "sound", "cpu"); fields left out keep
            their default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    VERSION: ClassVar[int]
    THREAT_MODEL: ClassVar[str]
    ACCESS: ClassVar[Literal["score", "label"]] = "score"
    THRESHOLD: ClassVar[float | None] = None
    NATURAL_THRESHOLD: ClassVar[float | None] = None
    CONTAINS_GAP: ClassVar[bool] = False
    KINDS: ClassVar[frozenset[Kind]] = frozenset({"binary", "image", "continuous"})
    AGAINST: ClassVar[tuple[str, ...]] = ()
    LEARNS: ClassVar[bool] = False
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def fault(self, shape: tuple[int, ...], *, adaptive: bool) -> str:
        """Why it cannot work, asked before anything runs; empty if nothing is known against it.

        Args:
            shape: of one record.
            adaptive: whether the attacker builds its own copies of the deployed defense.
        """
        return ""

    @property
    def adapts(self) -> bool:
        """Whether it has an adaptive form: it learns from known records, or trains models."""
        return self.LEARNS or isinstance(self, Planning)

    @property
    def foreign_datasets(self) -> tuple[str, ...]:
        """Names of other datasets that `trainings` trains on."""
        return ()

    @property
    def most_records(self) -> int | None:
        """How many records it judges at most, for attacks that ask thousands of times about each.

        They are then a random half members, half non-members of those judged otherwise, and half
        as many of the calibration records.
        """
        return None

    def harder(self) -> tuple["Attack", ...]:
        """The same attack trained harder, to be tried where it gets next to nothing.

        Three learning rates and four times the steps, for attacks with fields of these names.
        """
        if not {"learning_rate", "epochs"} <= type(self).model_fields.keys():
            return ()
        given: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        longer: dict[str, Any] = {
            name: 4 * given[name] for name in ("epochs", "patience") if name in given
        }
        return tuple(
            self.model_copy(update={**longer, "learning_rate": factor * given["learning_rate"]})
            for factor in (1 / 3, 1.0, 3.0)
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
        """Score records, higher = more likely a member.

        Args:
            query: the deployed service, asked about the records to judge. `query(x)` asked once
                costs one query a record; asking again under noise policy `fresh` draws again.
            known: what the attacker has; never the membership of `x`.
            x: [N, ...] float32 records in an order that tells nothing. Not modified.
            y: [N] int64 true labels.
            seed: all randomness derives from it.

        Returns:
            Finite float64 [N].
        """
        raise TypeError(f"{type(self).__name__} defines no score()")

    def reconstruct(
        self, answers: NDArray[np.float64], known: Knowledge, *, seed: int
    ) -> NDArray[np.float64]:
        """Rebuild records from the service's answers about them; see `Inversion`.

        Args:
            answers: [N, C], what the service released about records that are not shown.
            known: the attacker's own records (`population`, or `fit`) and the service to ask
                about them (`query`).
            seed: all randomness derives from it.

        Returns:
            [N, ...] records; pixels and bits in [0, 1].
        """
        raise TypeError(f"{type(self).__name__} defines no reconstruct()")

    def infer(
        self,
        answers: NDArray[np.float64],
        own_answers: NDArray[np.float64],
        own_values: NDArray[np.int64],
        *,
        num_values: int,
        seed: int,
    ) -> NDArray[np.float64]:
        """Infer a sensitive attribute from the service's answers about records; see `Attribute`.

        Args:
            answers: [N, C], what the service released about the records to judge.
            own_answers: [M, C], about the attacker's own records.
            own_values: int64 [M], their attribute, below `num_values`.
            num_values: A, how many values the attribute has.
            seed: all randomness derives from it.

        Returns:
            [N, A] finite scores; the largest is the inferred value.
        """
        raise TypeError(f"{type(self).__name__} defines no infer()")


@runtime_checkable
class Planning(Protocol):
    """An attack that needs models of its own trained before it runs."""

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """Called while planning; each entry is the result of `outline.training(...)`."""
        ...
