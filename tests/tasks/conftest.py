"""A small real world for tasks: handwritten digits, an overfitted target, a store on disk."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks.base import Attack
from defenses.base import Defense, Setting
from storage import datasets
from storage.artifacts import Artifact
from tasks import architectures
from tasks.answers import Answers
from tasks.base import Data, Rows, Task
from tasks.check_split import CheckSplit
from tasks.fit_defense import FitDefense
from tasks.knowledge import known_rows
from tasks.run_attack import RunAttack
from tasks.split import Split
from tasks.train_target import TrainTarget
from tasks.worker import Bench, Site, execute

torch.set_num_threads(1)

SOURCE = datasets.Source("digits_binary")


@dataclass(frozen=True)
class Lab:
    """A store, and the tasks whose artifacts are in it."""

    site: Site
    split: Split
    target: TrainTarget
    plain: Answers

    @property
    def bench(self) -> Bench:
        return Bench(self.site)

    @property
    def dataset(self) -> datasets.Dataset:
        return datasets.load(SOURCE)

    def run(self, task: Task) -> Artifact:
        """Run a task after whatever it needs."""
        for needed in task.inputs:
            self.run(needed)
        execute(task, self.site, "w1")
        return self.bench.open(task)

    def facts(self, task: Task) -> dict[str, Any]:
        """What a task found out."""
        return self.run(task).facts("metrics")

    def attack(self, answers: Answers, plugin: Attack, **fields: Any) -> RunAttack:
        split, judge = answers.target.split, fields.get("judge", "members")
        checks = CheckSplit(seed=answers.seed, split=split, judge=judge)
        return RunAttack(seed=answers.seed, answers=answers, attack=plugin, checks=checks, **fields)

    def defended(self, *chain: Defense, noise: Any = "deterministic") -> Answers:
        """The answers behind output defenses, the innermost first."""
        answers = self.plain
        for defense in chain:
            fitted = FitDefense(seed=answers.seed, answers=answers, defense=defense)
            answers = Answers(seed=answers.seed, source=fitted, noise=noise)
        return answers

    def elsewhere(self, folder: Path, *, keep: tuple[Task, ...] = ()) -> "Lab":
        """The same tasks with a store of their own, which holds only what is kept."""
        site = replace(self.site, artifacts=folder / "artifacts", journal=folder / "journal")
        for task in keep:
            place = Path(task.key[:2]) / task.key
            shutil.copytree(self.site.artifacts / place, site.artifacts / place)
        return replace(self, site=site)

    def trainings(self, attack: Any, *, seed: int) -> tuple[Task, ...]:
        """What an attack wants trained, as the plan would make it."""
        return tuple(attack.trainings(_Outline(self), seed=seed))


@dataclass(frozen=True)
class _Outline:
    lab: Lab
    adaptive: bool = False

    @property
    def known_rows(self) -> NDArray[np.int64]:
        return known_rows(self.lab.split.divide(self.lab.dataset), "members")

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.lab.dataset.y

    @property
    def num_classes(self) -> int:
        return self.lab.dataset.num_classes

    def training(self, *, rows: NDArray[np.int64], seed: int, **others: Any) -> Task:
        target = self.lab.target
        return TrainTarget(
            seed=seed, split=target.split, architecture=target.architecture, rows=Rows(rows)
        )


class Diagnosed(Defense):
    """Changes nothing, and says how much variance it left."""

    VERSION: ClassVar[int] = 1

    ratio: float
    seen: ClassVar[dict[str, Any]] = {}

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        Diagnosed.seen = {"setting": setting, "seed": seed}
        return {"nothing": np.zeros(3)}

    def apply(self, confidence: Any, state: Mapping[str, Any], noise: Any) -> NDArray[Any]:
        return confidence.copy()

    def diagnose(
        self, setting: Setting, state: Mapping[str, Any], *, seed: int
    ) -> dict[str, float]:
        return {"variance_ratio": self.ratio, "kl_mean": 0.25}


@pytest.fixture(scope="session")
def diagnosed() -> type[Diagnosed]:
    return Diagnosed


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The target knows its 60 members by heart. Its artifacts are not to be touched."""
    folder = tmp_path_factory.mktemp("store")
    data = Data(SOURCE, datasets.load(SOURCE).content_hash)
    split = Split(
        seed=3,
        data=data,
        members=60,
        reference=60,
        nonmembers=60,
        untrained=0,
        known=0.5,
        dedup="group",
    )
    recipe = architectures.make("mlp_s", hidden=(64,), epochs=60, learning_rate=3e-3)
    target = TrainTarget(seed=3, split=split, architecture=recipe)
    plain = Answers(seed=3, source=target)
    made = Lab(Site(folder / "artifacts", journal=folder / "journal"), split, target, plain)
    made.run(plain)
    return made


@pytest.fixture
def own_lab(lab: Lab, tmp_path: Path) -> Lab:
    """The same, in a store the test may damage."""
    return lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))


@pytest.fixture(scope="session")
def plugin_class() -> Callable[..., type]:
    """Make a plugin class; the same name and base give the same type tag."""

    def make(base: type, name: str = "Plug", **namespace: Any) -> type:
        return type(name, (base,), {"__module__": __name__, "__qualname__": name, **namespace})

    return make
