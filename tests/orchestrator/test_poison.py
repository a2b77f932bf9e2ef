"""No defense learns anything from the nonmembers: others in their place change no bit of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from defenses.base import OutputDefense, TrainingDefense
from orchestrator.check import load_experiment
from orchestrator.plan import make_plan
from tasks import plugins
from tasks.base import Task
from tasks.fit_defense import FitDefense
from tasks.train_target import TrainTarget
from tasks.worker import Bench, Site, execute

EACH, FEATURES, CLASSES = 60, 16, 4
ROLES = ("members", "reference", "nonmembers")


def write(path: Path, poisoned: bool) -> None:
    """60 records of each role; poisoned, all bits and labels of the nonmembers are others."""
    rng = np.random.default_rng(0)
    bits = rng.permutation(2**FEATURES)[: len(ROLES) * EACH]
    x = (bits[:, None] >> np.arange(FEATURES) & 1).astype(np.uint8)
    y = (x[:, :3].sum(axis=1) + (rng.random(len(x)) < 0.2)) % CLASSES
    role = rng.permutation(np.repeat(ROLES, EACH))
    if poisoned:
        outside = role == "nonmembers"
        x[outside], y[outside] = 1 - x[outside], (y[outside] + 1) % CLASSES
    np.savez(path, x=x, y=y, role=role)


def defenses() -> list[dict[str, Any]]:
    """All there are, at the cpu preset's sizes, each fitted for no longer than it takes to look."""
    chosen = []
    for name in plugins.names("defenses"):
        cls = plugins.defense(name)
        short = {key: 2 for key in ("epochs", "rounds") if key in cls.model_fields}
        chosen.append({"name": name, **short})
    return chosen


def learned(folder: Path, poisoned: bool) -> dict[str, dict[str, NDArray[Any]]]:
    """Weights or state of every defense, by name."""
    folder.mkdir()
    write(folder / "own.npz", poisoned)
    data = {"name": "own", "path": str(folder / "own.npz"), "split": {"column": "role"}}
    content = {
        "name": "poison",
        "seeds": [0],
        "preset": "cpu",
        "datasets": [data],
        "target": {"architecture": "mlp_s", "epochs": 10},
        "defenses": defenses(),
        "attacks": ["gap"],
    }
    (folder / "poison.yaml").write_text(yaml.safe_dump(content))
    plan = make_plan(load_experiment(str(folder / "poison.yaml")), None)
    site = Site(folder / "artifacts")
    found: dict[str, dict[str, NDArray[Any]]] = {}

    def done(task: Task) -> None:
        for needed in task.inputs:
            done(needed)
        execute(task, site, "w")

    for task in plan.tasks.values():
        if not isinstance(task, FitDefense | TrainTarget) or task.defense is None:
            continue
        done(task)
        kind = "state" if isinstance(task, FitDefense) else "weights"
        found[f"{plugins.plugin_name(task.defense)}, {kind}"] = Bench(site).arrays(task, kind)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, NDArray[Any]]]]:
    folder = tmp_path_factory.mktemp("poison")
    return [learned(folder / str(poisoned), poisoned) for poisoned in (False, True)]


@pytest.mark.parametrize("name", plugins.names("defenses"))
def test_nonmembers_teach_nothing(name: str, both: Any) -> None:
    clean, poisoned = both
    cls = plugins.defense(name)
    kinds = {"state": issubclass(cls, OutputDefense), "weights": issubclass(cls, TrainingDefense)}
    for kind in (kind for kind, there_is in kinds.items() if there_is):
        one, other = clean[f"{name}, {kind}"], poisoned[f"{name}, {kind}"]
        assert one
        assert set(one) == set(other)
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)
