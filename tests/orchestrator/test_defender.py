"""`judge: defender`: what a defender measures of itself depends on nothing that it does not own."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pandas.testing import assert_frame_equal

from orchestrator.check import check, load_experiment
from orchestrator.config import Experiment
from orchestrator.plan import Plan, make_plan
from orchestrator.resume import Store
from orchestrator.run import Options, run
from storage import splits
from storage.datasets import load
from tasks.base import Rows
from tasks.measure_utility import MeasureUtility
from tasks.train_shadows import shadow_pool

ROWS, FEATURES, CLASSES = 420, 10, 3
SIZES = {"members": 100, "reference": 120, "nonmembers": 100}
TARGET = {"architecture": "mlp_s", "epochs": 20, "hidden": [32]}
PURIFIER = {"name": "purifier", "hidden": [8, 8, 8], "latent": 2, "epochs": 2}
NSH = {"name": "nsh", "epochs": 3, "width": 0.1}
LIRA = {"name": "lira", "num_shadows": 4}
TABLES = ("results", "utility", "worst", "gates", "inversion", "attribute")
# What names the data or the task, and what a clock says.
NOT_VALUES = {
    *("dataset_hash", "form", "service", "settings"),
    *("duration_s", "device", "worker", "created_at", "started_at"),
    *("fit_s", "fit_ratio", "query_s", "query_ratio", "query_ratio_1"),
}


def content(path: Path, judge: str, **keys: Any) -> dict[str, Any]:
    data = {"name": "clinic", "path": str(path), "split": SIZES, "judge": judge}
    return {
        "name": "tiny",
        "seeds": [1],
        "datasets": [data],
        "target": TARGET,
        "defenses": ["none"],
        "attacks": ["gap"],
        **keys,
    }


def records() -> pd.DataFrame:
    """Classes that a net learns by heart only, some records twice, and an attribute beside."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    label = rng.integers(0, CLASSES, ROWS)
    x[:, 0] += label
    x[ROWS - 40 :: 2], label[ROWS - 40 :: 2] = x[:20], label[:20]
    frame = pd.DataFrame({f"f{i:03}": x[:, i] for i in range(FEATURES)})
    return frame.assign(label=label, sens=(x[:, 1] > 0).astype(int))


def poisoned(frame: pd.DataFrame, split: splits.Split) -> pd.DataFrame:
    """The same records for D1 and D2, garbage for all others; the same rows are duplicates."""
    rng, frame = np.random.default_rng(9), frame.copy()
    rows = np.concatenate([split.nonmembers, split.population])
    features = [name for name in frame if str(name).startswith("f")]
    garbage = rng.exponential(50, size=(ROWS, FEATURES)).astype(np.float32)
    frame.loc[rows, features] = garbage[split.groups[rows]]
    frame.loc[rows, "label"] = rng.integers(0, CLASSES, ROWS)[split.groups[rows]]
    frame.loc[rows, "sens"] = rng.integers(0, 2, len(rows))
    return frame


@dataclass(frozen=True)
class Twins:
    """Two files with the same D1 and D2, and nothing else in common."""

    folder: Path
    split: splits.Split
    history: Path
    quiet: Any

    def path(self, which: str) -> Path:
        return self.folder / which / "clinic.parquet"

    def tables(self, which: str, judge: str, **keys: Any) -> dict[str, pd.DataFrame]:
        """What an experiment on one of the files finds out, without names of tasks and times."""
        folder = self.folder / which / judge
        (folder / "store").mkdir(parents=True)
        shutil.copy(self.history, folder / "store")
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(content(self.path(which), judge, **keys)))
        options = Options(store=folder / "store", executor="inline")
        outcome = run(load_experiment(str(file)), options, self.quiet())
        assert not outcome.failed, outcome.failed
        store, found = Store(folder / "store"), {}
        for table in TABLES:
            frame = store.tables.frame(table, "tiny")
            kept = [n for n in frame if n not in NOT_VALUES and not str(n).endswith("_key")]
            order = [name for name in ("label", "attack_label", "gate") if name in kept]
            found[table] = frame[kept].sort_values(order, ignore_index=True) if order else frame
        return found


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, new_history: Path, quiet: Any) -> Twins:
    folder = tmp_path_factory.mktemp("twins")
    for which in ("clean", "poisoned"):
        (folder / which).mkdir()
    frame = records()
    frame.to_parquet(folder / "clean" / "clinic.parquet")
    split = divided(content(folder / "clean" / "clinic.parquet", "defender"))
    poisoned(frame, split).to_parquet(folder / "poisoned" / "clinic.parquet")
    return Twins(folder, split, new_history, quiet)


def divided(raw: dict[str, Any]) -> splits.Split:
    (entry,) = Experiment.model_validate(raw).datasets
    dataset = load(entry.source)
    return entry.division(1, dataset.content_hash).divide(dataset)


def test_nothing_a_defender_measures_depends_on_what_it_does_not_own(twins: Twins) -> None:
    """Garbage in place of D3 and the population changes no bit of any result."""
    keys = {
        "defenses": [
            "none",
            PURIFIER,
            ["l2", PURIFIER],
            {"name": "minmax", "epochs": 2},
            {"name": "prototype", "reference": {"from": "random", "size": 40}},
        ],
        "attacks": [
            *("gap", "attack_p", NSH, {**NSH, "adaptive": True}, LIRA),
            {"name": "attack_d", "num_models": 4},
            {**LIRA, "num_shadows": 6, "adaptive": True},
            {"name": "ml_leaks", "epochs": 2},
            {"name": "rmia", "num_shadows": 4},
            {"name": "quantile", "epochs": 5},
            {"name": "loss_trajectory", "distil_epochs": 10, "epochs": 5},
            {"name": "inversion", "epochs": 2},
            {"name": "attribute", "column": "sens", "epochs": 2},
        ],
    }
    clean = twins.tables("clean", "defender", **keys)
    other = twins.tables("poisoned", "defender", **keys)
    for table in TABLES:
        assert len(clean[table]), table
        assert_frame_equal(clean[table], other[table], check_exact=True)
    # The values are of something: the target has learnt its members by heart.
    results = clean["results"]
    undefended = results[results["label"] == "none"].set_index("attack_label")
    assert undefended.loc["gap", "attack_accuracy"] > 0.55
    assert set(results["num_nonmembers"]) == {len(set(judged_groups(twins.split)))}
    assert set(results["judge"]) == {"defender"}


def judged_groups(split: splits.Split) -> list[int]:
    return [int(split.groups[row]) for row in split.reference_val]


def test_what_others_judge_depends_on_it(twins: Twins) -> None:
    """The test above could fail: the same garbage changes every result of judge `members`."""
    keys = {"attacks": ["gap", "attack_p", NSH, LIRA, {"name": "inversion", "epochs": 2}]}
    clean = twins.tables("clean", "members", **keys)
    other = twins.tables("poisoned", "members", **keys)
    for table, column in (
        ("results", "auc"),
        ("utility", "test_accuracy"),
        ("inversion", "inversion_error"),
    ):
        assert len(clean[table]), table
        assert (clean[table][column] != other[table][column]).all(), table


def planned(path: Path, judge: str, **keys: Any) -> Plan:
    raw = content(path, judge, **keys)
    assert check(raw, None) == []
    return make_plan(Experiment.model_validate(raw), None)


def test_models_are_shared_with_the_evaluation_and_measurements_are_not(twins: Twins) -> None:
    """A tuned point's fit is the one that is evaluated; other judges' utility keeps its key."""
    keys = {"defenses": ["none", PURIFIER], "attacks": ["gap", LIRA]}
    usual, made = (planned(twins.path("clean"), judge, **keys) for judge in ("members", "defender"))
    shared = {made.tasks[key].kind for key in made.tasks.keys() & usual.tasks.keys()}
    assert shared == {"Split", "TrainTarget", "FitDefense", "Answers"}
    for plan, judge in ((usual, "members"), (made, "defender")):
        utility = [task for task in plan.tasks.values() if isinstance(task, MeasureUtility)]
        assert [task.judge for task in utility] == [judge, judge]
        assert all(("judge" in task.description) == (judge == "defender") for task in utility)


def test_every_row_a_plan_names_is_the_defenders(twins: Twins) -> None:
    attacks = ["ml_leaks", {**NSH, "adaptive": True}, LIRA, "loss_trajectory"]
    made = planned(twins.path("clean"), "defender", defenses=[PURIFIER], attacks=attacks)
    owned = np.concatenate([twins.split.members, twins.split.reference])
    named = [
        value.array
        for task in made.tasks.values()
        for name in ("rows", "reference", "own_copy_out", "held")
        if isinstance(value := getattr(task, name, None), Rows)
    ]
    assert len(named) >= 4
    for rows in named:
        assert np.isin(rows, owned).all()


def test_shadows_divide_what_the_defender_owns(twins: Twins) -> None:
    """As many records as for other judges where it owns them; none has a twin that is judged."""
    split = twins.split
    pool = shadow_pool(split, "defender", 0)
    judged, cal = split.judged("defender")[0], split.known("defender")[2]
    assert len(set(pool)) == len(pool) == 2 * len(split.members)
    assert np.isin(pool, np.concatenate([split.members, split.reference])).all()
    assert np.isin(np.concatenate([judged, cal]), pool).all()
    more = np.setdiff1d(pool, np.concatenate([judged, cal]))
    assert not np.isin(split.groups[more], split.groups[judged]).any()


@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        (
            {"attacks": [{"name": "ml_leaks", "shadow_data": "population"}]},
            "attacks[0].shadow_data",
            "no population (judge: defender); use 'known'",
        ),
        (
            {"defenses": [{**PURIFIER, "reference": "nonmembers"}]},
            "defenses[0].reference.from",
            "has no nonmembers; give reference, members, random or another dataset",
        ),
    ],
)
def test_what_a_defender_does_not_own_is_refused(
    twins: Twins, keys: dict[str, Any], place: str, message: str
) -> None:
    small = {"members": 50, "reference": 50, "nonmembers": 50}  # so that a population is left over
    data = {"name": "clinic", "path": str(twins.path("clean")), "split": small}
    own = [{**data, "judge": "defender"}]
    (problem,) = check(content(twins.path("clean"), "", **keys, datasets=own), None)
    assert problem.path == place
    assert "clinic" in problem.message
    assert "judge: defender" in problem.message
    assert message in problem.message
    assert check(content(twins.path("clean"), "", **keys, datasets=[data]), None) == []


@pytest.mark.parametrize(
    "reference", [{"size": 60}, "members", {"from": "digits_binary", "size": 60}, "random"]
)
def test_other_references_are_allowed(tmp_path: Path, reference: Any) -> None:
    data = {
        "name": "synth_s",
        "generator": {"rows": 400, "classes": 4, "features": 64},
        "split": {"members": 80, "reference": 60, "nonmembers": 80},
        "judge": "defender",
    }
    defenses = [{**PURIFIER, "reference": reference}]
    assert check(content(tmp_path, "", datasets=[data], defenses=defenses), None) == []


def test_a_column_of_roles_serves_too(twins: Twins, tmp_path: Path) -> None:
    frame = records().assign(fold="")
    for role in SIZES:
        frame.loc[getattr(twins.split, role), "fold"] = role
    frame.to_parquet(path := tmp_path / "clinic.parquet")
    data = {"name": "clinic", "path": str(path), "split": {"column": "fold"}, "judge": "defender"}
    raw = content(path, "", datasets=[data], attacks=["gap", LIRA])
    assert check(raw, None) == []
    rows, is_member = divided(raw).judged("defender")
    assert np.isin(rows[is_member], twins.split.members).all()
    assert np.isin(rows[~is_member], twins.split.reference).all()


def test_too_many_copies_leave_its_attacker_nothing_to_learn_from(tmp_path: Path) -> None:
    """All of the reference but a record or two are copies, which stay on one side."""
    frame = records()[: ROWS - 40].assign(fold="nonmembers")
    frame.loc[:99, "fold"] = "members"
    frame.loc[100:120, "fold"] = "reference"
    features = [f"f{i:03}" for i in range(FEATURES)]
    frame.loc[101:119, features] = frame.loc[101, features].to_numpy()
    frame.to_parquet(path := tmp_path / "clinic.parquet")
    data = {"name": "clinic", "path": str(path), "split": {"column": "fold"}, "judge": "defender"}
    (problem,) = check(content(path, "", datasets=[data]), None)
    assert problem.path == "datasets[0].split"
    assert "reference" in problem.message
    assert "make reference larger" in problem.message
