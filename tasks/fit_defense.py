"""Task: a fitted output defense."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense, Diagnosing, OutputDefense
from storage.artifacts import Draft
from tasks.base import ADDED, Task, stream
from tasks.noise import NoisePolicy
from tasks.plugins import plugin_name
from tasks.reference import ReferenceFrom, referred
from tasks.service import Defended, Stage, TrainedView
from tasks.setting import DefenderSetting, make_setting
from tasks.split import write_rows_seen
from tasks.worker import Bench

if TYPE_CHECKING:
    from tasks.answers import Answers
    from tasks.train_shadows import Shadow
    from tasks.train_target import TrainTarget

__all__ = ["FitDefense"]


@dataclass(frozen=True, eq=False)
class FitDefense(Task):
    """An output defense fitted around what is answered so far.

    Attributes:
        answers: the target's answers, or those of the previous stage of a chain.
        defense: the plugin.
        trainings: what the plugin's `trainings` asked for.
        reference_from: what it is given for reference records; None for those of the target.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 5.0

    answers: "Answers"
    defense: Defense
    trainings: tuple[Task, ...] = ()
    reference_from: ReferenceFrom | None = field(default=None, metadata=ADDED)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.answers.dataset

    @property
    def name(self) -> str:
        """The plugin."""
        return plugin_name(self.defense)

    @property
    def target(self) -> "TrainTarget | Shadow":
        """The classifier at the root of the chain."""
        return self.answers.target

    @property
    def depth(self) -> int:
        """How many output defenses stand between this one and the target."""
        return len(self.answers.stages)

    def setting(self, bench: Bench) -> tuple[DefenderSetting, dict[str, NDArray[np.int64]]]:
        """What the defender has to fit this defense with, and the rows it so sees, by role."""
        target = self.target
        reference, seen = referred(
            self.reference_from,
            target,
            bench,
            seed=self.seed,
            answer=self.answers.undefended.service(bench).answer,
        )
        setting = make_setting(
            bench.dataset(target.split.data),
            member_rows=target.member_rows(bench),
            reference=reference,
            architecture=target.architecture,
            seed=self.seed,
            device=bench.device,
            trained=tuple(task.trained(bench) for task in self.trainings),
            answer=self.answers.service(bench).answer,
        )
        return setting, {"members": target.member_rows(bench), **seen}

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write the state, the facts the defense logs about itself, and the rows seen."""
        setting, seen = self.setting(bench)
        plugin = cast(OutputDefense, self.defense)
        seed = stream(self.seed, "defense.fit", self.depth)
        started = time.perf_counter()
        state = plugin.fit(setting, seed=seed)
        fit_s = time.perf_counter() - started
        facts: dict[str, Any] = {"fit_s": fit_s}
        facts["extra_bytes"] = sum(array.nbytes for array in state.values())
        if isinstance(self.defense, Diagnosing):
            facts |= self.defense.diagnose(setting, state, seed=stream(self.seed, "defense.log"))
        draft.arrays("state", {name: np.asarray(array) for name, array in state.items()})
        write_rows_seen(draft, seen)
        draft.facts("metrics", facts)

    def stage(self, bench: Bench, noise: str = "deterministic") -> Stage:
        """The fitted defense, to be asked under a noise policy."""
        secret = stream(self.seed, "defense.noise", self.depth).to_bytes(8, "big")
        return Defended(
            previous=self.answers.service(bench),
            defense=cast(OutputDefense, self.defense),
            state=bench.arrays(self, "state"),
            policy=cast(NoisePolicy, noise),
            secret=secret,
            input_kind=bench.dataset(self.target.split.data).kind,
        )

    def trained(self, bench: Bench) -> TrainedView:
        """The fitted defense as the plugin that asked for it sees it."""
        from tasks.service import Service

        return TrainedView(
            rows=self.target.member_rows(bench),
            load_weights=lambda: bench.arrays(self.target, "weights"),
            load_state=lambda: bench.arrays(self, "state"),
            service=lambda: Service(self.stage(bench)),
        )
