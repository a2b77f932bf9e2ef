"""Flags of a whole run: what many seeds and defenses raise by chance is not shown."""

import numpy as np
import pandas as pd
import pytest

from orchestrator._upheld import upheld_flags, upheld_gates

GATES = ("row_order", "asked_order", "inputs", "class")
SEEDS = range(10)


def gates(p, datasets=("a",)):
    """A table of gates; `p` maps (dataset, seed, gate) to p-values, all others are 0.5."""
    rows = [
        {"dataset": dataset, "seed": seed, "gate": gate, "p": p.get((dataset, seed, gate), 0.5)}
        for dataset in datasets
        for seed in SEEDS
        for gate in GATES
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(flagged=frame["p"] <= 0.001)


def utility(p, labels=("one", "two")):
    """A row a defense and seed; `p` maps (label, seed) to the p-value of its swaps."""
    rows = [
        {"dataset": "a", "label": label, "seed": seed, "swap_detection_p": p.get((label, seed))}
        for label in labels
        for seed in SEEDS
    ]
    frame = pd.DataFrame(rows).astype({"swap_detection_p": float})
    found = [["swap_detectable"] if p <= 0.001 else [] for p in frame["swap_detection_p"]]
    return frame.assign(flags=[["collapsed", *flags] for flags in found])


NO_SWAPS = utility({})


@pytest.mark.parametrize(
    ("p", "upheld"), [(0.0009, False), (0.0001, False), (0.00003, True), (float("nan"), False)]
)
def test_one_flag_in_ten_seeds_needs_more_than_one_in_one(p, upheld):
    found = upheld_gates(gates({("a", 3, "inputs"): p}))
    assert len(found) == 30
    assert found["upheld"].any() == upheld
    results = pd.DataFrame({"dataset": ["a"], "label": ["one"], "flags": [["blind_leak", "i6"]]})
    kept = upheld_flags(results, found, NO_SWAPS)["flags"].item()
    assert kept == (["blind_leak", "i6"] if upheld else ["i6"])


def test_a_leak_in_every_seed_needs_less_in_each():
    # Holm: 30, 29, ... 21 tests are left as one after the other is believed.
    strong = {("a", seed, "row_order"): 3e-5 for seed in SEEDS}
    assert upheld_gates(gates(strong))["upheld"].sum() == 10
    mixed = strong | {("a", 0, "inputs"): 0.001 / 20}
    assert upheld_gates(gates(mixed))["upheld"].sum() == 11
    alone = {("a", 0, "inputs"): 0.001 / 20}
    assert not upheld_gates(gates(alone))["upheld"].any()


def test_the_class_gate_has_its_own_level():
    found = upheld_gates(gates({("a", seed, "class"): 1e-9 for seed in SEEDS}))
    assert "class" not in set(found["gate"])


def test_a_leak_of_one_dataset_voids_no_other():
    found = upheld_gates(gates({("b", 0, "asked_order"): 1e-7}, datasets=("a", "b")))
    rows = {"dataset": ["a", "b"], "label": ["one"] * 2, "flags": [["order_leak"], ["order_leak"]]}
    kept = upheld_flags(pd.DataFrame(rows), found, NO_SWAPS)
    assert kept["flags"].tolist() == [[], ["order_leak"]]


def test_swaps_are_judged_among_all_defenses_and_seeds():
    none = upheld_gates(gates({}))
    # Two tests were made: the others changed no label.
    weak, strong = (utility({("one", 0): p, ("two", 1): 0.9}) for p in (0.0008, 0.0004))
    assert upheld_flags(weak, none, weak)["flags"].tolist() == [["collapsed"]] * 20
    kept = upheld_flags(strong, none, strong)
    told = {label for label, f in zip(kept["label"], kept["flags"], strict=True) if len(f) > 1}
    assert told == {"one"}
    assert all(flags[0] == "collapsed" for flags in kept["flags"])


def test_stores_without_p_values_keep_their_flags():
    old = gates({("a", 0, "inputs"): 1e-5}).assign(p=None)
    assert upheld_gates(old)["upheld"].sum() == 1


def test_nothing_computed_is_nothing_upheld():
    found = upheld_gates(gates({}).iloc[:0])
    assert found.empty
    assert upheld_flags(NO_SWAPS.iloc[:0], found, NO_SWAPS.iloc[:0]).empty


def test_an_honest_run_of_many_seeds_is_called_a_leak_once_in_a_thousand():
    rng = np.random.default_rng(0)
    shown = flagged = 0
    table = gates({})
    for _ in range(400):
        p = np.where(table["gate"] == "class", 0.5, rng.random(len(table)))
        run = table.assign(p=p, flagged=p <= 0.001)
        flagged += run["flagged"].any()
        shown += upheld_gates(run)["upheld"].any()
    assert flagged >= 4  # 3 % of runs
    assert shown <= 3  # 0.1 %
