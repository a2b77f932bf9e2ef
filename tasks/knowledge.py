"""What an attacker has (`attacks.base.Knowledge`), as its threat model grants it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attacks.base import Known, Records
from storage import splits
from storage.datasets import Dataset, Kind
from tasks import training
from tasks.architectures import Architecture, with_recipe
from tasks.base import Rows, random_generator
from tasks.service import Model, Query

if TYPE_CHECKING:
    from tasks.run_attack import ShadowModels

__all__ = ["ForeignRecords", "Held", "Knowledge", "distinct", "known_rows"]

# Threat models of methods.md section 1 that are told who is a member among some records.
_TOLD = frozenset({"BB-score", "BB-label", "BB-adaptive", "BB-defense-white"})
_CALIBRATION_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Held:
    """The records an attacker holds, whatever its threat model.

    It has functions rather than the dataset, where an attack could look further.

    Attributes:
        told: known records to fit on and to calibrate on, with their membership in the target.
        rows: the dataset rows the attacker's models are trained on.
        population_rows: rows known to be no members, sorted.
        x_of: records and labels of rows the attacker holds; PermissionError for others.
    """

    told: tuple[Known, Known]
    rows: NDArray[np.int64]
    population_rows: NDArray[np.int64]
    x_of: Callable[[NDArray[np.int64]], tuple[NDArray[Any], NDArray[np.int64]]]
    num_classes: int
    shape: tuple[int, ...]
    kind: Kind
    seed: int

    @classmethod
    def of(
        cls, dataset: Dataset, split: splits.Split, judge: splits.Judge, rows: Rows | None
    ) -> "Held":
        """What an attacker holds of a division, its models being trained on `rows` if given."""
        fit_rows, fit_member, cal_rows, cal_member = split.known(judge)
        known = known_rows(split, judge)
        population = split.population_of(judge)
        held = np.concatenate([fit_rows, cal_rows, population])
        return cls(
            told=(
                Known(dataset.x(fit_rows), dataset.y[fit_rows], fit_member),
                Known(dataset.x(cal_rows), dataset.y[cal_rows], cal_member),
            ),
            rows=known if rows is None else rows.array,
            population_rows=np.union1d(fit_rows[~fit_member], population),
            x_of=_records(dataset, held),
            num_classes=dataset.num_classes,
            shape=dataset.shape,
            kind=dataset.kind,
            seed=split.seed,
        )

    def divided(
        self, rows_in: NDArray[np.int64], rows_out: NDArray[np.int64], *, seed: int
    ) -> tuple[Known, Known]:
        """Records that trained the attacker's own copy and others, to fit on and to calibrate."""
        rows = np.sort(np.concatenate([rows_in, rows_out]))
        order = random_generator(seed, "attack.own_copy.known").permutation(len(rows))
        cut = round(_CALIBRATION_SHARE * len(rows))
        parts = []
        for part in (rows[order[cut:]], rows[order[:cut]]):
            x, y = self.x_of(part)
            parts.append(Known(x, y, np.isin(part, rows_in)))
        return parts[0], parts[1]


class ForeignRecords:
    """`attacks.base.Foreign`: a whole dataset that has nothing to do with the target."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @property
    def rows(self) -> NDArray[np.int64]:
        """All its rows."""
        return np.arange(len(self._dataset))

    def x_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Records and labels."""
        return self._dataset.x(rows), self._dataset.y[rows]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """`attacks.base.Knowledge` of one attack."""

    held: Held
    threat_model: str
    told_fit: Known
    told_cal: Known
    query: Query
    trained: tuple[Any, ...]
    shadow_models: "Callable[[], ShadowModels]"
    architecture: Architecture
    device: str
    others: Mapping[str, ForeignRecords] = field(default_factory=dict)

    def foreign(self, dataset: str) -> ForeignRecords:
        """A dataset the attack's models were trained on; PermissionError for others."""
        if dataset not in self.others:
            raise PermissionError(
                f"the attacker does not hold '{dataset}'; its trainings() asked for "
                f"{', '.join(self.others) or 'no other dataset'}"
            )
        return self.others[dataset]

    @property
    def fit(self) -> Known:
        """Known records to fit on; PermissionError for who is told no membership."""
        return self._told(self.told_fit)

    @property
    def cal(self) -> Known:
        """Known records to calibrate on; PermissionError for who is told no membership."""
        return self._told(self.told_cal)

    def _told(self, part: Known) -> Known:
        if self.threat_model not in _TOLD:
            raise PermissionError(
                f"an attack of threat model {self.threat_model} is told nobody's membership; "
                f"one that is declares {', '.join(sorted(_TOLD))}"
            )
        return part

    @cached_property
    def population(self) -> Records:
        """Records known to be no members; PermissionError for a blind attacker."""
        if self.threat_model == "BB-blind":
            raise PermissionError("a blind attacker (BB-blind) has no records of its own")
        rows = self.held.population_rows
        order = random_generator(self.held.seed, "attack.population").permutation(len(rows))
        return Records(*self.held.x_of(rows[order]))

    @property
    def num_classes(self) -> int:
        """C."""
        return self.held.num_classes

    @property
    def kind(self) -> Kind:
        """What the records are."""
        return self.held.kind

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows the attacker's models are trained on."""
        return self.held.rows

    @property
    def shadows(self) -> "ShadowModels":
        """The shadow models the attack asked for; raises TypeError if it asked for none."""
        return self.shadow_models()

    def x_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Records and labels of rows the attacker holds; raises PermissionError for others."""
        return self.held.x_of(rows)

    def train(
        self,
        x: NDArray[Any],
        targets: NDArray[Any],
        *,
        seed: int,
        snapshots: int = 1,
        **recipe: Any,
    ) -> "tuple[_Snapshot, ...]":
        """A model of the target's architecture at equal parts of its training.

        Raises:
            ValueError: for a field the recipe does not have, or more snapshots than epochs.
        """
        architecture = with_recipe(self.architecture, **recipe)
        if not 1 <= snapshots <= architecture.epochs:
            raise ValueError(
                f"snapshots is {snapshots}; of {architecture.epochs} epochs between 1 and as many "
                "can be kept"
            )
        ends = {-(-architecture.epochs * i // snapshots) for i in range(1, snapshots)}
        kept: list[dict[str, NDArray[Any]]] = []

        def keep(epoch: int, module: nn.Module) -> bool:
            if epoch + 1 in ends:
                kept.append(training.weights_of(module))
            return False

        targets = np.array(targets)
        soft = targets.ndim == 2
        trained = training.train(
            architecture,
            np.array(x, dtype=np.float32),
            targets.argmax(axis=1) if soft else targets,
            num_classes=self.num_classes,
            seed=seed,
            device=self.device,
            ways=training.Ways(
                targets=targets.astype(np.float32) if soft else None, after_epoch=keep
            ),
        )
        # A training that stopped early was finished at every later snapshot.
        kept += [trained.weights] * (snapshots - len(kept))
        return tuple(self._snapshot(architecture, weights) for weights in kept)

    def _snapshot(
        self, architecture: Architecture, weights: dict[str, NDArray[Any]]
    ) -> "_Snapshot":
        shape, num_classes = self.held.shape, self.num_classes
        module = training.load_module(architecture, weights, shape, num_classes, self.device)
        return _Snapshot(Model(module, self.device))


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """A trained model to ask; `attacks.base.Model`."""

    model: Model

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [N, C] for any x [N, ...]."""
        inputs = np.ascontiguousarray(x, dtype=np.float32)
        return self.model.compute(inputs, np.zeros(len(x), dtype=np.int64))


def known_rows(split: splits.Split, judge: splits.Judge) -> NDArray[np.int64]:
    """The rows whose membership the attacker is told, one of each set of equal records, sorted.

    Two equal records on different sides of a model the attacker trains would have wrong labels.
    """
    fit_rows, _, cal_rows, _ = split.known(judge)
    return distinct(np.concatenate([fit_rows, cal_rows]), split)


def distinct(rows: NDArray[np.int64], split: splits.Split) -> NDArray[np.int64]:
    """The first of each set of equal records among `rows`, sorted."""
    rows = np.sort(rows)
    return rows[np.sort(np.unique(split.groups[rows], return_index=True)[1])]


def _records(
    dataset: Dataset, held: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], tuple[NDArray[Any], NDArray[np.int64]]]:
    """Gives records and labels of rows among `held`, and a PermissionError for others."""

    def records(rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        foreign = np.setdiff1d(rows, held)
        if len(foreign):
            raise PermissionError(
                f"the attacker does not hold rows {foreign[:3].tolist()} ({len(foreign)} in all)"
            )
        return cast("NDArray[Any]", dataset.x(rows)), dataset.y[rows]

    return records
