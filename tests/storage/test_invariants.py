"""Invariants: clean cells pass, planted leaks are caught, chance flags as rarely as stated."""

import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.halves import half_split
from storage.invariants import check_invariants, shadow_independence
from storage.splits import Sizes, make_split


def logged(split, y, groups, judge="members"):
    """What the stages of a clean cell log."""
    rows, is_member = split.judged(judge)
    fit, _, cal, _ = split.known(judge)
    return {
        "split": split,
        "groups": groups,
        "y": y,
        "target_rows": np.sort(split.members),
        "defense_rows": np.concatenate([split.reference, split.members]),
        "fit_rows": fit,
        "cal_rows": cal,
        "judged_rows": rows,
        "judged_is_member": is_member,
        "selection_rows": cal[:5],
        "judge": judge,
    }


@st.composite
def clean_cells(draw):
    """What the stages of a clean cell log, for any judge, with and without duplicates."""
    num, judge = st.integers(60, 90), draw(st.sampled_from(JUDGES))
    needs_reference = judge in ("reference", "defender")
    reference = draw(st.sampled_from([15, 40] if needs_reference else [0, 15, 40]))
    untrained = draw(st.sampled_from([3, 20] if judge == "untrained" else [0, 3, 20]))
    sizes = Sizes(draw(num), reference, draw(num), untrained)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows_of_group = rng.choice([1, 2, 3], 260, p=draw(st.sampled_from(MIXES)))
    groups = rng.permutation(np.repeat(np.arange(260), rows_of_group))
    y = rng.integers(0, 5, size=len(groups))
    known, dedup = (
        draw(st.sampled_from([0.25, 0.5, 0.75])),
        draw(st.sampled_from(["group", "drop"])),
    )
    split = make_split(y, groups, sizes, known=known, seed=draw(st.integers(0, 99)), dedup=dedup)
    return logged(split, y, groups, judge)


JUDGES = ["members", "reference", "untrained", "defender"]
MIXES = [(1, 0, 0), (0.9, 0.05, 0.05), (0.4, 0.3, 0.3)]


@given(clean_cells())
@settings(max_examples=100, deadline=None)
def test_a_clean_cell_violates_nothing(cell):
    # Chance may flag, see the rates below; it may not void.
    assert not [violation for violation in check_invariants(**cell) if violation.fatal]


def test_chance_flags_clean_cells_as_rarely_as_stated():
    flags = Counter()
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, size=1000)
    for seed in range(400):
        split = make_split(y, np.arange(1000), Sizes(300, 60, 300), seed=seed)
        flags.update(v.name for v in check_invariants(**logged(split, y, np.arange(1000))))
    assert set(flags) <= {"I6", "I7"}
    assert flags["I6"] <= 13  # 1 % of 400 is 4; 13 or more has probability 3e-4
    assert flags["I7"] <= 2


@pytest.fixture(scope="module")
def cell():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, size=1200)
    groups = np.concatenate([np.arange(1000), np.arange(200)])  # row i and row 1000 + i are twins
    split = make_split(y, groups, Sizes(300, 200, 300, untrained=60), seed=5)
    return logged(split, y, groups)


def twin_in(rows):
    """A row of `rows` whose twin can be planted elsewhere, and the twin."""
    row = next(r for r in rows if r < 200)
    return row, row + 1000


def append(key, pick):
    def plant(cell):
        return {key: np.append(cell[key], pick(cell))}

    return plant


def unlike_roles(cell):
    # The file now says that a member and a reference row are duplicates; the split did not know.
    split, groups = cell["split"], cell["groups"].copy()
    groups[split.members_eval[0]] = groups[split.reference_fit[0]]
    return {"groups": groups}


def one_class_for_members(cell):
    y = cell["y"].copy()
    y[cell["judged_rows"][cell["judged_is_member"]][:40]] = 0
    return {"y": y}


def only_members(cell):
    keep = cell["judged_is_member"]
    return {"judged_rows": cell["judged_rows"][keep], "judged_is_member": keep[keep]}


def fewer_members(cell):
    keep = np.ones(len(cell["judged_rows"]), dtype=bool)
    keep[np.flatnonzero(cell["judged_is_member"])[:5]] = False
    return {key: cell[key][keep] for key in ("judged_rows", "judged_is_member")}


def ordered(key):
    """The judged rows, resorted by a function of membership and position."""

    def plant(cell):
        is_member = cell["judged_is_member"]
        return {"order": cell["judged_rows"][np.argsort(key(is_member), kind="stable")]}

    return plant


def alternating(is_member):
    turn = np.empty(len(is_member))
    turn[is_member] = 2 * np.arange(is_member.sum())
    turn[~is_member] = 2 * np.arange((~is_member).sum()) + 1
    return turn


def in_blocks_of_ten(is_member):
    return alternating(is_member) // 20 * 20 + is_member


def drifting(is_member):
    return np.arange(len(is_member)) + 120 * is_member


def a_judged_row_twice(cell):
    return {
        "judged_rows": np.append(cell["judged_rows"], cell["judged_rows"][:1]),
        "judged_is_member": np.append(cell["judged_is_member"], cell["judged_is_member"][:1]),
    }


def flipped_membership(cell):
    return {"judged_is_member": ~cell["judged_is_member"]}


def judged_row(cell):
    return cell["judged_rows"][3]


def judged_twin(cell):
    return twin_in(cell["judged_rows"])[1]


FAULTS = {
    "judged row fitted": ("I1", True, append("fit_rows", judged_row)),
    "twin of a judged row fitted": ("I1", True, append("fit_rows", judged_twin)),
    "judged row calibrated on": ("I2", True, append("cal_rows", judged_row)),
    "twin of a judged row calibrated on": ("I2", True, append("cal_rows", judged_twin)),
    "defense saw a nonmember": (
        "I3",
        True,
        append("defense_rows", lambda c: c["split"].nonmembers_fit[0]),
    ),
    "defense saw the population": (
        "I3",
        True,
        append("defense_rows", lambda c: c["split"].population[0]),
    ),
    "target saw a reference row": (
        "I4",
        True,
        append("target_rows", lambda c: c["split"].reference_val[0]),
    ),
    "target missed a member": ("I4", True, lambda c: {"target_rows": c["target_rows"][1:]}),
    "target saw a member twice": (
        "I4",
        True,
        append("target_rows", lambda c: c["target_rows"][0]),
    ),
    "membership flipped": ("I4", True, flipped_membership),
    "a group divided between roles": ("I5", True, unlike_roles),
    "calibrated on a fitted row": ("I5", True, append("cal_rows", lambda c: c["fit_rows"][0])),
    "a record judged twice": ("I5", False, a_judged_row_twice),
    "members of few classes": ("I6", False, one_class_for_members),
    "only members judged": ("I6", True, only_members),
    "fewer members judged": ("I6", False, fewer_members),
    "members asked first": ("I7", True, ordered(lambda m: ~m)),
    "members asked last": ("I7", True, ordered(lambda m: m)),
    "membership drifts": ("I7", False, ordered(drifting)),
    "members alternate": ("I7", False, ordered(alternating)),
    "batches of one kind": ("I7", False, ordered(in_blocks_of_ten)),
    "other rows asked": ("I7", True, lambda c: {"order": c["judged_rows"][1:]}),
    "selected on a fit row": ("I8", True, append("selection_rows", lambda c: c["fit_rows"][2])),
    "selected on a judged row": ("I8", True, append("selection_rows", judged_row)),
}
# Faults that break a second promise too.
ALSO = {"membership flipped": {"I5"}, "a record judged twice": {"I6"}}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_caught(cell, fault):
    assert check_invariants(**cell) == []
    name, fatal, plant = FAULTS[fault]
    found = check_invariants(**{**cell, **plant(cell)})
    assert (name, fatal) in [(violation.name, violation.fatal) for violation in found]
    assert {violation.name for violation in found} <= {name} | ALSO.get(fault, set())


@pytest.mark.parametrize("side", [-1, 1])
def test_the_runs_test_knows_its_own_spread(cell, side):
    is_member, rng = cell["judged_is_member"], np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(is_member, (4000, 1)), axis=1)
    num_runs = 1 + np.count_nonzero(np.diff(shuffled, axis=1), axis=1)

    def flags(z):
        """What is found where the run lengths are even and there are z spreads too many runs."""
        num = round(num_runs.mean() + z * num_runs.std()) // 2
        turn = np.empty(len(is_member))
        for flag in (False, True):
            count = np.count_nonzero(is_member == flag)
            turn[is_member == flag] = 2 * (np.arange(count) * num // count) + flag
        order = cell["judged_rows"][np.argsort(turn, kind="stable")]
        return [violation.message for violation in check_invariants(**cell | {"order": order})]

    assert flags(side * 3.2) == []
    assert [message[:18] for message in flags(side * 4.8)] == ["the number of runs"]


def test_messages_name_stage_and_first_rows(cell):
    rows = cell["judged_rows"][:5]
    (violation,) = check_invariants(**{**cell, "fit_rows": np.append(cell["fit_rows"], rows)})
    listed = ", ".join(map(str, np.sort(rows)[:3]))
    assert f"attack fit and judged both use rows {listed}, ... (5 in all)" in violation.message


def test_a_leaky_defense_is_let_off_and_nothing_else_is(cell):
    seen = np.concatenate([cell["defense_rows"], cell["split"].nonmembers])
    found = check_invariants(**{**cell, "defense_rows": seen})
    assert {violation.name for violation in found} == {"I3", "I5"}
    assert check_invariants(**{**cell, "defense_rows": seen}, leaky=True) == []
    fit = np.append(cell["fit_rows"], cell["judged_rows"][0])
    found = check_invariants(**{**cell, "defense_rows": seen, "fit_rows": fit}, leaky=True)
    assert [violation.name for violation in found] == ["I1"]


@pytest.mark.parametrize("stage", ["fit_rows", "cal_rows", "selection_rows"])
@pytest.mark.parametrize("role", ["nonmembers_fit", "nonmembers_eval", "population"])
def test_a_defender_measures_itself_on_what_it_owns(cell, stage, role):
    clean = logged(cell["split"], cell["y"], cell["groups"], "defender")
    assert check_invariants(**clean) == []
    strange = getattr(cell["split"], role)[0]
    found = check_invariants(**{**clean, stage: np.append(clean[stage], strange)})
    (violation,) = [violation for violation in found if violation.name == "I3"]
    assert violation.fatal
    assert "a defender's own measurement used rows it does not own" in violation.message
    assert f"row {strange} (the first is {role})" in violation.message
    # For the others such rows are the attacker's own.
    fitted = {**cell, "fit_rows": np.append(cell["fit_rows"], cell["split"].population[0])}
    assert check_invariants(**fitted) == []


def test_a_defender_is_not_judged_on_the_nonmembers_of_others(cell):
    of_others = {key: cell[key] for key in ("judged_rows", "judged_is_member", "selection_rows")}
    clean = logged(cell["split"], cell["y"], cell["groups"], "defender")
    found = check_invariants(**{**clean, **of_others})
    assert "I3" in [violation.name for violation in found if violation.fatal]


@pytest.mark.parametrize("leaky", [False, True])
def test_a_defender_may_select_on_what_it_is_judged_by_and_never_on_d3(cell, leaky):
    split = cell["split"]
    clean = logged(split, cell["y"], cell["groups"], "defender")
    judged_non = clean["judged_rows"][~clean["judged_is_member"]]
    assert np.isin(judged_non, clean["defense_rows"]).all()
    assert check_invariants(**clean, leaky=leaky) == []
    seen = np.append(clean["defense_rows"], split.nonmembers_fit[0])
    found = check_invariants(**{**clean, "defense_rows": seen}, leaky=leaky)
    assert [(violation.name, violation.fatal) for violation in found] == [("I3", True)]


@pytest.mark.parametrize("judge", ["reference", "untrained", "defender"])
def test_records_of_another_judge_must_not_have_trained_the_target(cell, judge):
    clean = logged(cell["split"], cell["y"], cell["groups"], judge)
    assert check_invariants(**clean) == []
    rows = clean["judged_rows"]
    target = np.append(clean["target_rows"], rows[~clean["judged_is_member"]][:1])
    found = check_invariants(**{**clean, "target_rows": target})
    assert {violation.name for violation in found} == {"I4", "I5"}


def test_rows_outside_the_dataset_are_refused(cell):
    with pytest.raises(ValueError, match="attack fit logged row 1200; the dataset has 1200 rows"):
        check_invariants(**{**cell, "fit_rows": np.append(cell["fit_rows"], 1200)})


def test_shadow_independence_tells_a_drawn_pool_from_a_leaking_one():
    rng = np.random.default_rng(0)
    is_member = rng.permutation(1000) < 500
    clean = half_split(np.arange(1000), 64, seed=0)
    assert shadow_independence(clean, is_member) < 4.5
    for leak in (is_member, ~is_member):
        assert shadow_independence(leak[None], is_member) > 30
        assert shadow_independence(np.vstack([clean, leak]), is_member) > 30
    # Members in 55 % of shadows: no one shadow shows it, their sum does.
    faint = rng.random((64, 1000)) < 0.5 + 0.05 * is_member
    assert shadow_independence(faint, is_member) > 8
    row = clean[0]
    expected = np.corrcoef(row, is_member)[0, 1] * np.sqrt(999)
    assert shadow_independence(row[None], is_member) == pytest.approx(abs(expected))


def test_a_large_cell_is_checked_in_one_go():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.concatenate([np.arange(160_000), rng.integers(0, 20_000, 40_000)]))
    y = rng.integers(0, 100, size=len(groups))
    split = make_split(y, groups, Sizes(20_000, 20_000, 20_000, untrained=2_000), seed=0)
    start = time.perf_counter()
    found = check_invariants(**logged(split, y, groups))
    sys.stdout.write(f"{len(y):,} rows checked in {time.perf_counter() - start:.3f} s\n")
    assert not [violation for violation in found if violation.fatal]
