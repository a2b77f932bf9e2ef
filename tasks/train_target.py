"""Task: a trained classifier, the target or one trained like it."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from defenses.base import Defense, Diagnosing, OutputDefense, TrainingDefense
from storage.artifacts import ArtifactDamaged, Draft
from tasks import training
from tasks.architectures import Architecture
from tasks.base import ADDED, Rows, Task, random_generator, stream
from tasks.reference import ReferenceFrom, referred
from tasks.service import Custom, Model, Service, Stage, TrainedView
from tasks.setting import make_setting
from tasks.split import Split, write_rows_seen
from tasks.worker import Bench

__all__ = ["Classifier", "TrainTarget", "classifier_stage", "classifier_view"]


@dataclass(frozen=True, eq=False)
class TrainTarget(Task):
    """A classifier trained on the split's members, or on other rows.

    Attributes:
        split: the partition of the dataset.
        architecture: network and recipe.
        defense: a training defense, or None.
        rows: what it trains on; None for the members of the split.
        reference: the defender's reference rows; None for those of the split.
        trainings: models the training defense asked for.
        reference_from: what the training defense is given for reference records; None for
            `reference`, which any defense around the model has too.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 5.0

    split: Split
    architecture: Architecture
    defense: Defense | None = None
    rows: Rows | None = None
    reference: Rows | None = None
    trainings: tuple[Task, ...] = ()
    reference_from: ReferenceFrom | None = field(default=None, metadata=ADDED)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.split.dataset

    @property
    def name(self) -> str:
        """The architecture."""
        return self.architecture.name

    def member_rows(self, bench: Bench) -> NDArray[np.int64]:
        """The rows it trains on."""
        return bench.split(self.split).members if self.rows is None else self.rows.array

    def reference_rows(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The defender's reference rows: 80 % to fit on, 20 % to select and stop on."""
        if self.reference is None:
            split = bench.split(self.split)
            return split.reference_fit, split.reference_val
        order = random_generator(self.seed, "defense.reference").permutation(len(self.reference))
        rows = self.reference.array[order]
        cut = round(0.8 * len(rows))
        return rows[:cut], rows[cut:]

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write weights, the loss of each epoch, and the rows seen."""
        losses: list[NDArray[np.float64]] = []
        member_rows = self.member_rows(bench)
        reference, referred_rows = referred(self.reference_from, self, bench, seed=self.seed)
        setting = make_setting(
            bench.dataset(self.split.data),
            member_rows=member_rows,
            reference=reference,
            architecture=self.architecture,
            seed=self.seed,
            device=bench.device,
            trained=tuple(task.trained(bench) for task in self.trainings),
            losses=losses,
        )
        seen = {"members": member_rows}
        started = time.perf_counter()
        if isinstance(self.defense, TrainingDefense):
            seen |= referred_rows
            weights = self.defense.train(setting, seed=stream(self.seed, "defense.fit"))
        else:
            weights = setting.train(setting.members)
        train_s = time.perf_counter() - started
        draft.arrays("weights", weights)
        history = losses[-1] if losses else np.empty(0)
        draft.table("history", {"epoch": np.arange(1, len(history) + 1), "loss": history})
        write_rows_seen(draft, seen)
        facts: dict[str, Any] = {"train_s": train_s, "epochs": len(history)}
        # One that fits too (an output defense) says it of the fitted state.
        if isinstance(self.defense, Diagnosing) and not isinstance(self.defense, OutputDefense):
            facts |= self.defense.diagnose(setting, weights, seed=stream(self.seed, "defense.log"))
        draft.facts("metrics", facts)

    def stage(self, bench: Bench, noise: str = "deterministic") -> Stage:
        """The trained classifier, to be asked. It draws nothing, whatever the noise policy."""
        return classifier_stage(self, bench)

    def trained(self, bench: Bench) -> TrainedView:
        """The classifier as the plugin that asked for it sees it."""
        return classifier_view(self, bench)


class Classifier(Protocol):
    """What a target and a shadow have in common: something trained, to ask and to defend."""

    @property
    def key(self) -> str: ...

    @property
    def split(self) -> Split: ...

    @property
    def architecture(self) -> Architecture: ...

    @property
    def defense(self) -> Defense | None: ...

    def member_rows(self, bench: Bench) -> NDArray[np.int64]: ...

    def reference_rows(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


def classifier_stage(task: Classifier, bench: Bench) -> Stage:
    """A classifier whose artifact holds `weights`, ready to be asked."""
    dataset = bench.dataset(task.split.data)
    confidences = getattr(task.defense, "confidences", None)
    if confidences is not None:
        weights = bench.arrays(cast(Task, task), "weights")
        return Custom(partial(confidences, weights, architecture=task.architecture))

    def load() -> nn.Module:
        # Not remembered apart from the network: what does not fit will be another's next time.
        held = bench.open(cast(Task, task)).arrays("weights")
        shape, num_classes = dataset.shape, dataset.num_classes
        try:
            return training.load_module(task.architecture, held, shape, num_classes, bench.device)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            raise ArtifactDamaged(
                task.key, "weights.safetensors", f"does not fit {task.architecture.name} ({why})"
            ) from error

    return Model(bench.keep(("module", task.key), load), bench.device)


def classifier_view(task: Classifier, bench: Bench) -> TrainedView:
    """A classifier as the plugin that asked for it sees it."""
    no_state: dict[str, NDArray[Any]] = {}
    return TrainedView(
        rows=task.member_rows(bench),
        load_weights=lambda: bench.arrays(cast(Task, task), "weights"),
        load_state=lambda: no_state,
        service=lambda: Service(classifier_stage(task, bench)),
    )
