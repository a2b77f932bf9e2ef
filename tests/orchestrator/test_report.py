"""What a run prints: the worst case of each defense, and whether the protocol leaks."""

import io
import shutil

import numpy as np
import pytest
from rich.console import Console

from orchestrator.check import load_experiment
from orchestrator.overview import print_status
from orchestrator.plan import make_plan
from orchestrator.report import print_results
from orchestrator.resume import compare

# What a view adds, and a time that goes its own way between frames and tables.
SHOWN = ["experiment", "label", "preset", "status", "attack_label", "created_at"]
SHOWN += ["service", "current", "form", "settings"]
LABELS = ("none", "purifier", "reformer only", "l2+onehot")


def printed(show):
    console = Console(file=io.StringIO(), width=220, highlight=False, markup=False)
    show(console)
    return console.file.getvalue()


def results(lab, **changes):
    experiment = load_experiment(str(lab.file(**changes)))
    return printed(lambda console: print_results(console, experiment, lab.store))


def cells(text, first):
    """The cells of the table row that begins with `first`, line by line."""
    lines = iter(text.splitlines())
    line = next(line for line in lines if line.startswith(f"│ {first} "))
    rows = []
    while line.startswith("│"):
        rows.append([part.strip() for part in line.strip("│").split("│")][1:])
        line = next(lines)
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.fixture
def own(undisturbed, lab):
    """The finished small experiment in a store the test may change."""
    shutil.copytree(undisturbed[0].store.root, lab.store.root)
    return lab


def given(value):
    """A value of a frame as a table takes it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and np.isnan(value) else value


def rewrite(lab, table, **columns):
    """Change columns of every row of a table."""
    tables = lab.store.tables
    frame = tables.frame(table)
    for key, rows in frame.groupby("task_key"):
        kept = rows.drop(columns=SHOWN, errors="ignore")
        changed = [
            {name: given(value) for name, value in row.items()}
            | {name: change(row) for name, change in columns.items()}
            for row in kept.to_dict("records")
        ]
        tables.write(table, key, changed)


def test_the_last_row_is_the_worst_case_beside_chance(undisturbed):
    lab, _, _ = undisturbed
    tables = lab.store.tables
    worst = {row["label"]: row for row in tables.frame("worst", "tiny").to_dict("records")}
    found = tables.frame("results", "tiny")
    shown = cells(results(lab), "worst of these")
    assert list(worst) == list(LABELS)
    for label, (accuracy, attack, chance, epsilon) in zip(LABELS, shown, strict=True):
        mine = found[found["label"] == label]
        top = mine["attack_accuracy"].max()
        row = worst[label]
        assert row["attack_accuracy"] == top
        assert accuracy.split()[0] == f"{100 * top:.1f}"
        assert attack in set(mine.loc[mine["attack_accuracy"] == top, "attack_label"])
        assert chance == f"chance ≤ {100 * row['chance_accuracy']:.1f}"
        assert 0.5 < row["chance_accuracy"] < 0.6
        (bound,) = mine.loc[mine["attack_label"] == attack, "epsilon_lower_bound"]
        assert epsilon == f"ε ≥ {bound:.1f}"
    assert "a" in shown[1][0].split()[-1]  # purifier, and nobody adapted
    assert "no attack here was made for this defense" in results(lab)


def test_an_honest_protocol_is_said_to_be_one(undisturbed):
    lab, _, _ = undisturbed
    line = next(line for line in results(lab).splitlines() if line.startswith("checks"))
    gates = lab.store.tables.frame("gates", "tiny").set_index("gate")
    assert not gates["flagged"].any()
    assert f"row order {gates.loc['row_order', 'value']:.3f}" in line
    assert f"inputs alone {gates.loc['inputs', 'value']:.3f}" in line
    assert line.endswith("no leak found in the protocol")


def test_a_leak_voids_the_results(own):
    flag_inputs(own, p=1e-5)
    text = results(own)
    assert (
        "LEAK: membership is told by inputs alone in 1 of 1 seeds; their results are void" in text
    )
    assert all(cell[0].endswith(" V") for cell in cells(text, "gap"))
    assert "V = void: the inputs alone tell membership (checks)" in text


def flag_inputs(lab, p):
    """The gate of the inputs, of three, flagged with a p-value."""
    rewrite(
        lab,
        "gates",
        flagged=lambda row: row["gate"] == "inputs",
        p=lambda row: p if row["gate"] == "inputs" else row["p"],
    )
    rewrite(lab, "results", flags=lambda row: ["blind_leak"])


def test_a_flag_that_chance_raises_among_as_many_gates_voids_nothing(own):
    flag_inputs(own, p=0.0009)
    text = results(own)
    assert "LEAK" not in text
    assert "no leak found in the protocol; inputs alone in 1 of 1 seeds p ≤ 0.001" in text
    assert not any(cell[0].endswith("V") for cell in cells(text, "gap"))
    assert "V = void" not in text


def test_unlucky_classes_are_told_but_void_nothing(own):
    rewrite(own, "gates", flagged=lambda row: row["gate"] == "class")
    text = results(own)
    assert "LEAK" not in text
    assert "classes tell membership in 1 of 1 seeds" in text


def test_a_defense_whose_swaps_show_is_marked(own):
    swaps = '"swapper": true'
    rewrite(
        own,
        "utility",
        flags=lambda row: ["swap_detectable"] if swaps in row["defense_params"] else [],
        swap_detection_p=lambda row: 1e-5,
    )
    assert "│ purifier s " in results(own)
    assert "│ reformer only │" in results(own)


@pytest.mark.parametrize(("inside", "verdict"), [(True, "inside"), (False, "OUTSIDE: the evalu")])
def test_the_null_reads_the_band_from_the_worst_case(own, inside, verdict):
    rewrite(own, "worst", inside_band=lambda row: inside, accuracy_sd_key=first_metric(own))
    dataset = {**own.tiny["datasets"][0], "judge": "untrained"}
    dataset["split"] = dataset["split"] | {"members": 300, "untrained": 50}
    text = results(own, datasets=[dataset])
    lines = [line for line in text.splitlines() if line.startswith("null on synth_s, ")]
    row = own.store.tables.frame("worst", "tiny").iloc[0]
    assert len(lines) == len(LABELS)
    assert verdict in lines[0]
    assert f"worst accuracy {row['observed_accuracy_sd']:.2f} sd (metric(confidence)" in lines[0]
    assert f"band {row['band_auc_sd']:.2f}" in lines[0]


def first_metric(lab):
    found = lab.store.tables.frame("results", "tiny")
    key = {
        label: of_label.loc[of_label["attack"] == "metric", "task_key"].iloc[0]
        for label, of_label in found.groupby("label")
    }
    return lambda row: key["none"]


def test_without_some_attack_the_worst_is_marked_incomplete(own):
    attacks = ["gap", {"name": "nsh", "epochs": 2, "width": 0.1, "learning_rate": 1e30}]
    changes = {"attacks": attacks, "defenses": ["none"]}
    outcome, _ = own.run(**changes)
    assert len(outcome.failed) == 1
    text = results(own, **changes)
    gap = own.store.tables.frame("results", "tiny", outcome.form)["attack_accuracy"].item()
    assert cells(text, "worst of these") == [[f"{100 * gap:.1f}", "gap", "incomplete"]]
    assert "missing: synth_s, none, worst of the attacks (blocked: RunAttack nsh failed" in text
    plan = make_plan(load_experiment(str(own.file(**changes))), None)
    status = printed(
        lambda console: print_status(console, compare(plan, own.store, repair=False), own.store)
    )
    assert "checks of the split" in status
    rows = [line.split("│")[1:-1] for line in status.splitlines() if "│ synth_s" in line]
    assert [[part.strip() for part in row] for row in rows] == [
        ["synth_s", "checks of the split", "1", "1", "0", "0"],
        ["synth_s", "none", "4", "2", "1", "1"],
    ]
