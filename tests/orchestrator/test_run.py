"""From file to table: sharing, resuming, equality between executors."""

import json
import shutil
from pathlib import Path

import pytest

from storage.tables import equal

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny.json"


def test_first_run_fills_every_cell(undisturbed):
    lab, outcome, _quiet = undisturbed
    tables = lab.store.tables
    cells = tables.frame("cells", "tiny")
    assert set(cells["status"]) == {"done"}
    assert dict(cells["kind"].value_counts()) == {
        "attack": 4 * 4,
        "utility": 4,
        "worst": 4,
        "check": 1,
    }
    assert len(tables.frame("results", "tiny")) == 16
    assert len(tables.frame("utility", "tiny")) == len(tables.frame("worst", "tiny")) == 4
    assert len(tables.frame("gates", "tiny")) == 4
    assert len(tables.frame("tasks")) == len(outcome.plan.tasks) == outcome.ran
    assert len(tables.frame("scores", "tiny")) == 16 * 400
    assert lab.repeated() == []


def test_golden_run(undisturbed):
    """One tiny seeded run: its task keys exactly, its metrics to 0.02.

    After a deliberate change, delete tests/golden/tiny.json and run this test twice.
    """
    lab, outcome, _ = undisturbed
    frame = lab.store.tables.frame("results", "tiny").sort_values(["label", "attack_label"])
    rows = zip(frame["label"], frame["attack_label"], frame["attack_accuracy"], strict=True)
    now = {
        "keys": sorted(outcome.plan.tasks),
        "accuracy": {f"{label}/{attack}": value for label, attack, value in rows},
    }
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(now, indent=1))
        pytest.fail(f"{GOLDEN.name} was missing and is written anew: look at the diff")
    then = json.loads(GOLDEN.read_text())
    assert now["keys"] == then["keys"]
    assert now["accuracy"] == pytest.approx(then["accuracy"], abs=0.02)


def test_repeat_recomputes_nothing_and_starts_nothing(undisturbed, lab, monkeypatch):
    before, outcome, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    monkeypatch.setattr("orchestrator.run.Loop", None)  # any use of it would raise
    again, quiet = lab.run()
    assert again.ran == 0
    assert again.cached == outcome.ran
    assert quiet.started_ == []
    assert lab.executions() == []
    assert equal(before.store.tables, lab.store.tables) == []


def test_a_further_seed_runs_only_that_seed(undisturbed, lab):
    before, outcome, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    again, quiet = lab.run(seeds=[0, 1])
    assert again.cached == outcome.ran - 4
    tasks = again.plan.tasks
    # A shadow model has a seed of its own, derived from the experiment's.
    ran = [tasks[key] for key in quiet.started_]
    roots = {task.seed for task in ran if task.kind not in ("TrainTarget", "WorstCase")}
    assert roots == {1}
    assert [task.kind for task in ran].count("WorstCase") == 4  # over all seeds, so anew
    assert len(lab.store.tables.frame("results", "tiny")) == 32


def test_a_further_attack_runs_only_that_attack(undisturbed, lab):
    before, _outcome, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    attacks = [*lab.tiny["attacks"], {"name": "metric", "statistic": "entropy"}]
    again, quiet = lab.run(attacks=attacks)
    kinds = [again.plan.tasks[key].kind for key in quiet.started_]
    assert sorted(kinds) == ["RunAttack"] * 4 + ["WorstCase"] * 4


def test_full_purifier_and_reformer_only_share_one_reformer(undisturbed):
    _, outcome, _ = undisturbed
    fits = [t for t in outcome.plan.tasks.values() if t.kind == "FitDefense"]
    named = sorted(t.name for t in fits)
    assert named == ["onehot", "purifier", "purifier"]


def test_deleted_artifact_is_made_again_and_nothing_else(undisturbed, lab):
    before, outcome, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    cell = next(c for c in outcome.plan.cells if c.kind == "attack")
    key = cell.task.key
    shutil.rmtree(lab.store.root / "artifacts" / key[:2] / key)
    _, quiet = lab.run()
    assert quiet.started_ == [key]
    assert equal(before.store.tables, lab.store.tables) == []


def test_damaged_input_found_while_running_is_made_again(undisturbed, lab):
    """A bit flip that no size shows: a task that reads it finds it, and the run goes on."""
    before, outcome, _ = undisturbed
    shutil.copytree(before.store.root, lab.store.root)
    cell = next(c for c in outcome.plan.cells if c.kind == "attack")
    answers = cell.task.answers.key
    file = lab.store.root / "artifacts" / answers[:2] / answers / "answers.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shutil.rmtree(lab.store.root / "artifacts" / cell.task.key[:2] / cell.task.key)
    again, quiet = lab.run()
    assert not again.failed
    assert answers in quiet.finished_
    assert any("damaged" in note for note in quiet.notes)
    assert equal(before.store.tables, lab.store.tables) == []


def test_failed_task_blocks_only_its_branch(lab):
    """A learning rate that diverges fails one attack; every other cell is filled."""
    attacks = ["gap", {"name": "nsh", "epochs": 2, "width": 0.1, "learning_rate": 1e30}]
    outcome, _quiet = lab.run(attacks=attacks, defenses=["none"])
    assert len(outcome.failed) == 1
    assert "learning_rate" in next(iter(outcome.failed.values()))
    cells = lab.store.tables.frame("cells", "tiny")
    assert list(zip(cells["kind"], cells["status"], strict=True)) == [
        ("check", "done"),
        ("utility", "done"),
        ("attack", "done"),
        ("attack", "failed"),
        ("worst", "blocked"),
    ]
    failures = lab.store.tables.frame("failures")
    assert list(failures["name"]) == ["nsh"]


def test_a_failure_is_forgotten_once_its_task_succeeds(lab):
    """The network was away, say: the same task, with the same key, succeeds later."""
    outcome, _ = lab.run(attacks=["gap"], defenses=["none"])
    key = next(cell.task.key for cell in outcome.plan.cells if cell.kind == "attack")
    shutil.rmtree(lab.store.root / "artifacts" / key[:2] / key)
    lab.store.tables.write("failures", key, [{"kind": "RunAttack", "error": "was away"}])
    lab.run(attacks=["gap"], defenses=["none"])
    assert lab.store.tables.frame("failures").empty


@pytest.mark.ray
@pytest.mark.slow  # test_nodes.py has four of them
@pytest.mark.parametrize("workers", [2, 1])
def test_tables_are_equal_on_ray(undisturbed, lab, workers):
    before, outcome, _ = undisturbed
    again, _quiet = lab.run(executor="ray", workers=workers)
    assert not again.failed
    assert again.ran == outcome.ran
    assert equal(before.store.tables, lab.store.tables) == []
    assert lab.repeated() == []
