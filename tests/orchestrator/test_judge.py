"""What held-out attackers make of a front, beside an obvious account of the same tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.judge import points_of
from orchestrator.resume import Store

# Its fixtures cost seconds: one of several processes makes them.
pytestmark = pytest.mark.xdist_group("judge")

STUDY: dict[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 5, "clusters": 4},
            "split": {"members": 160, "reference": 160, "nonmembers": 160},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 8, "hidden": [16]},
    "defenses": ["none", {"name": "rounding", "decimals": 1, "label": "coarse"}],
    "attacks": [
        {"name": "metric", "statistic": "entropy"},
        {"name": "metric", "statistic": "modified_entropy"},
    ],
    "tune": {
        "defense": "random_noise",
        "space": {"sigma": [0.01, 0.3, 1.0]},
        "attacks": ["gap", {"name": "metric", "statistic": "confidence"}],
        "objectives": ["auc", "l1_distortion"],
        "seeds": [0],
        "sampler": "grid",
        "trials": 3,
        "judged": 2,
        "choose": "least_leak",
    },
}
HELD_OUT = {"metric(entropy)", "metric(modified_entropy)"}
TUNING = {"gap (tuned on)", "metric(confidence) (tuned on)"}


class Judged:
    """A study that was searched and judged by command. Not to be changed."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.file = folder / "small.yaml"
        self.file.write_text(yaml.safe_dump(STUDY))
        self.code, self.said = self.command("tune", self.file)
        self.rows = self.store.tables.frame("judged").to_dict("records")
        self.folder = self.store.experiment("small")

    def command(self, name: str, *args: object) -> tuple[int, str]:
        given = [name, *map(str, args), "--store", str(self.store.root), "--inline"]
        ended = CliRunner().invoke(app, given)
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return ended.exit_code, ended.output

    def command_of_store(self, name: str) -> tuple[int, str]:
        ended = CliRunner().invoke(app, [name, "--store", str(self.store.root)])
        return ended.exit_code, ended.output

    def of(self, table: str, label: str) -> Any:
        frame = self.store.tables.frame(table, "small.front")
        return frame[frame["label"] == label]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    made = Judged(tmp_path_factory.mktemp("judged"))
    assert made.code == 0, made.said
    return made


def test_the_figures_are_those_of_an_obvious_account(judged: Judged) -> None:
    trials = {row["number"]: row for row in judged.store.tables.frame("trials").to_dict("records")}
    assert {row["label"] for row in judged.rows} >= {"none", "coarse"}
    for row in judged.rows:
        results = judged.of("results", row["label"])
        assert set(results["attack_label"]) == HELD_OUT | TUNING
        assert sorted(results["seed"].unique()) == [0, 1]
        kinds = {"held_out": HELD_OUT, "tuning": TUNING, "worst": HELD_OUT | TUNING}
        for kind, names in kinds.items():
            means = {
                name: sum(results[results["attack_label"] == name]["attack_accuracy"]) / 2
                for name in names
            }
            assert row[f"{kind}_accuracy"] == pytest.approx(max(means.values()))
            assert means[row[f"{kind}_attack"]] == pytest.approx(max(means.values()))
            assert row[f"num_{kind}"] == len(names)
            low, high = row[f"{kind}_accuracy_low"], row[f"{kind}_accuracy_high"]
            assert low < row[f"{kind}_accuracy"] < high
        costs = judged.of("utility", row["label"])
        assert row["test_accuracy"] == pytest.approx(costs["test_accuracy"].mean())
        assert row["test_accuracy_drop"] == pytest.approx(costs["test_accuracy_drop"].mean())
        assert row["num_seeds"] == 2
        if row["number"] == row["number"]:  # not one of the experiment's own
            trial = trials[row["number"]]
            assert row["validation_accuracy"] == trial["attack_accuracy"]
            assert row["validation_attack"] == trial["attack"]
            assert row["validation_test_accuracy"] == trial["test_accuracy"]


def test_optimism_is_the_sum_of_its_parts(judged: Judged) -> None:
    points = [row for row in judged.rows if row["number"] == row["number"]]
    assert points
    for row in points:
        parts = row["search_optimism"] + row["attacker_optimism"]
        assert row["optimism"] == pytest.approx(parts, abs=1e-12)
        assert row["optimism"] == row["worst_accuracy"] - row["validation_accuracy"]
        assert row["attacker_optimism"] >= 0  # more attackers never get less
        assert row["search_optimism"] == row["tuning_accuracy"] - row["validation_accuracy"]
    for row in judged.rows:
        if row not in points:
            assert row["optimism"] != row["optimism"]  # no trial saw it


def test_the_points_judged_are_of_the_front_and_the_chosen_is_among_them(judged: Judged) -> None:
    tune = load_experiment(str(judged.file)).tune
    assert tune is not None
    trials = judged.store.tables.frame("trials").sort_values("number").to_dict("records")
    points = points_of(tune, [{str(k): v for k, v in row.items()} for row in trials])
    front = {
        row["number"]
        for row in trials
        if not any(
            all(a <= b for a, b in zip(other["objectives"], row["objectives"], strict=True))
            and list(other["objectives"]) != list(row["objectives"])
            for other in trials
        )
    }
    numbers = {int(row["number"]) for row in judged.rows if row["number"] == row["number"]}
    assert numbers <= front
    assert len(numbers) == min(2, len(front))
    (chosen,) = [row for row in judged.rows if row["chosen"]]
    assert points.chosen is not None
    assert chosen["number"] == points.rows[points.chosen]["number"]
    assert chosen["rule"] == "least_leak"
    assert min(trials[n]["objectives"][0] for n in front) == points.values[points.chosen, 0]


def test_the_files_written_are_experiments_that_need_nothing_new(judged: Judged) -> None:
    (chosen,) = [row for row in judged.rows if row["chosen"]]
    for name in ("front", "chosen"):
        path = judged.folder / f"{name}.yaml"
        made = load_experiment(str(path))
        assert made.name == f"small.{name}"
        assert made.tune is None
        code, said = judged.command("run", path)
        assert code == 0, said
        assert "nothing to run" in said
    labels = [chain[0].label or chain[0].name for chain in made.defenses]
    assert labels == ["none", chosen["label"]]
    trials = judged.store.tables.frame("trials")
    (params,) = trials[trials["number"] == chosen["number"]]["params"]
    assert made.defenses[1][0].params["sigma"] == json.loads(params)["sigma"]


def test_it_is_told(judged: Judged) -> None:
    assert "judged by attackers that no trial saw" in judged.said
    assert "(tuned on)" in judged.said
    for row in judged.rows:
        assert f"{100 * row['held_out_accuracy']:.1f}" in judged.said
    code, said = judged.command("tune", judged.file)
    assert code == 0
    again = judged.store.tables.frame("judged").to_dict("records")
    assert len(again) == len(judged.rows)
    assert "tasks to run" not in said


def test_an_experiment_with_no_judge_has_none(judged: Judged, tmp_path: Path) -> None:
    store = tmp_path / "store"
    args = ["tune", str(judged.file), "--store", str(store), "--inline", "--no-judge"]
    ended = CliRunner().invoke(app, [*args, "--set", "tune.trials=1"])
    assert "held-out" not in ended.output
    assert len(Store(store).tables.frame("judged")) == 0
    assert (store / "experiments" / "small" / "chosen.yaml").is_file()


def test_flags_of_what_is_shown_are_told(judged: Judged) -> None:
    for row in judged.rows:
        results, costs = judged.of("results", row["label"]), judged.of("utility", row["label"])
        shown = results[
            results["attack_label"].isin([row["held_out_attack"], row["tuning_attack"]])
        ]
        flags = {flag for flags in [*shown["flags"], *costs["flags"]] for flag in flags}
        assert set(row["flags"]) == flags


def test_garbage_is_told_in_a_store_with_a_study(judged: Judged) -> None:
    code, said = judged.command_of_store("gc")
    assert code == 0, said
    assert "cannot be told" not in said
    assert (judged.folder / "experiment.yaml").is_file()


def test_an_earlier_choice_is_said_no_more(tmp_path: Path) -> None:
    made = Judged(tmp_path)
    assert made.code == 0, made.said
    other = ("--set", "tune.choose=most_accurate", "--set", "tune.judged=1")
    assert made.command("tune", made.file, *other)[0] == 0
    rows = made.store.tables.frame("judged")
    assert rows["chosen"].sum() == 1
    assert rows["number"].notna().sum() == 1
    assert set(rows.loc[rows["chosen"], "rule"]) == {"most_accurate"}


def test_the_point_of_a_chain_is_judged_as_its_trial(tmp_path: Path) -> None:
    chain = {
        **STUDY["tune"],
        "defense": ["l2", "random_noise"],
        "space": {"random_noise.sigma": [0.01, 1.0]},
        "judged": 1,
    }
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "name": "chain", "seeds": [0], "tune": chain}))
    args = ["tune", str(file), "--store", str(tmp_path / "store"), "--inline"]
    ended = CliRunner().invoke(app, args)
    assert ended.exit_code == 0, ended.output
    rows = Store(tmp_path / "store").tables.frame("judged")
    (chosen,) = rows[rows["chosen"]].to_dict("records")
    assert chosen["label"].startswith("l2+trial ")
    assert chosen["optimism"] == chosen["optimism"]
