"""Planted leaks of the protocol are found, and none where there is none."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attacks.base import Attack
from attacks.gap import Gap
from storage import datasets
from storage.artifacts import Draft
from tasks.base import Data
from tasks.check_split import CheckSplit, asked_order, blind_scores, position_scores
from tasks.metrics import auc_interval
from tasks.split import Split

DIGITS = datasets.Source("digits")
SIZES = {"members": 600, "reference": 300, "nonmembers": 600, "untrained": 0}


def make_split(seed: int, source: datasets.Source = DIGITS, **sizes: int) -> Split:
    data = Data(source, datasets.load(source).content_hash)
    return Split(seed=seed, data=data, known=0.5, dedup="group", **(SIZES | sizes))


def flagged(facts: dict[str, Any]) -> set[str]:
    return {name for name, gate in facts["gates"].items() if gate["flagged"]}


def planted(lab: Any, folder: Path, split: Split, leak: Any, *, turned: bool = False) -> Any:
    """A store whose members have the lowest `leak`; if turned, the judged ones the highest."""
    other = lab.elsewhere(folder)
    dataset = datasets.load(split.data.source)
    roles = split.divide(dataset).roles()
    sides = {
        side: [name for name in roles if name.startswith(side)] for side in ("members", "nonm")
    }
    both = np.concatenate([roles[name] for names in sides.values() for name in names])
    lowest_first = both[np.argsort(leak(dataset, both), kind="stable")]
    num = sum(len(roles[name]) for name in sides["members"])
    rng = np.random.default_rng(0)
    for names, rows in zip(sides.values(), (lowest_first[:num], lowest_first[num:]), strict=True):
        cuts = np.cumsum([len(roles[name]) for name in names])[:-1]
        roles |= dict(zip(names, np.split(rng.permutation(rows), cuts), strict=True))

    if turned:
        lowest = roles["members_eval"]
        roles |= {"members_eval": roles["nonmembers_eval"], "nonmembers_eval": lowest}

    def write(draft: Draft) -> None:
        names = np.concatenate([np.full(len(rows), name) for name, rows in roles.items()])
        draft.table("split", {"role": names, "row": np.concatenate([*roles.values()])})

    other.bench.artifacts.put(split.key, split.description, write)
    return other


def brightness(dataset: Any, rows: Any) -> Any:
    return dataset.x(rows).sum(axis=(1, 2, 3))


LEAKS = {
    "sorted storage order": (lambda dataset, rows: rows, {"row_order"}),
    "shifted inputs": (brightness, {"inputs"}),
    "skewed classes": (lambda dataset, rows: dataset.y[rows], {"class", "inputs"}),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_and_flagged(lab: Any, tmp_path: Path, name: str) -> None:
    leak, gates = LEAKS[name]
    split = make_split(1)
    other = planted(lab, tmp_path, split, leak)
    task = CheckSplit(seed=1, split=split)
    facts = other.facts(task)
    assert gates <= flagged(facts)
    assert "asked_order" not in flagged(facts)
    names = {"row_order": "order_leak", "inputs": "blind_leak"}
    assert set(facts["flags"]) == {names[gate] for gate in flagged(facts) if gate in names}
    rows = {row["gate"]: row for row in task.table_rows(other.bench.open(task))["gates"]}
    assert set(rows) == {"row_order", "asked_order", "inputs", "class"}
    assert {gate for gate, row in rows.items() if row["flagged"]} == flagged(facts)
    assert (rows["class"]["p"] <= 0.01) == rows["class"]["flagged"]


@pytest.mark.parametrize(("name", "flag"), [(0, "order_leak"), (1, "blind_leak")])
def test_a_guess_that_is_always_wrong_is_a_leak_too(
    lab: Any, tmp_path: Path, name: int, flag: str
) -> None:
    split = make_split(3)
    leak, (gate,) = list(LEAKS.values())[name]
    facts = planted(lab, tmp_path, split, leak, turned=True).facts(CheckSplit(seed=3, split=split))
    assert facts["gates"][gate]["high"] < 0.5
    assert flag in facts["flags"]


def test_the_gate_is_on_the_result(lab: Any, tmp_path: Path) -> None:
    # A split of 60 that leaks by brightness alone is too small to say so; this one is larger.
    split = make_split(2)
    target = replace(lab.target, split=split, seed=2)
    other = planted(lab, tmp_path, split, brightness)
    leaking = other.attack(replace(lab.plain, source=target, seed=2), Gap())
    assert "blind_leak" in other.facts(leaking)["flags"]
    honest = lab.attack(lab.plain, Gap())
    assert not {"blind_leak", "order_leak"} & set(lab.facts(honest)["flags"])


def test_honest_splits_raise_no_flag(lab: Any, tmp_path: Path) -> None:
    other = lab.elsewhere(tmp_path)
    facts = [other.facts(CheckSplit(seed=s, split=make_split(s))) for s in range(20)]
    raised = [flag for fact in facts for flag in fact["flags"]]
    # Three gates at 99.9 %, 20 seeds: one false alarm has a chance of 6 %, two of 0.2 %.
    assert len(raised) <= 1, raised
    values = np.array(
        [[fact["gates"][gate]["value"] for gate in ("row_order", "inputs")] for fact in facts]
    )
    # Their spread is chance's: 300 against 300 records have a standard deviation of 0.024.
    np.testing.assert_allclose(values.mean(axis=0), 0.5, atol=4 * 0.024 / np.sqrt(20))
    np.testing.assert_allclose(values.std(axis=0), 0.024, rtol=0.6)


def test_false_alarms_come_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(5)
    runs, level = 400, 0.1
    alarms = 0
    for _ in range(runs):
        rows = rng.permutation(700)
        member = rng.permutation(np.arange(700) < 350)
        known, judged = slice(0, 300), slice(300, 700)
        score = position_scores(rows[known], member[known], rows[judged])
        _, low, high = auc_interval(score, member[judged], level / 2)
        alarms += not low <= 0.5 <= high
    assert alarms / runs == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / runs))


@pytest.mark.parametrize("judge", ["reference", "untrained"])
def test_every_judge_is_checked(lab: Any, tmp_path: Path, judge: Any) -> None:
    split = make_split(4, members=400, reference=400, nonmembers=400, untrained=200)
    task = CheckSplit(seed=4, split=split, judge=judge)
    facts = lab.elsewhere(tmp_path).facts(task)
    assert facts["flags"] == []
    assert all(gate.get("value", 0.5) is not None for gate in facts["gates"].values())


class Listener(Attack):
    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"

    heard: ClassVar[list[Any]] = []

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        Listener.heard.append(x)
        return np.zeros(len(y))


def test_the_order_checked_is_the_order_asked(lab: Any) -> None:
    lab.run(lab.attack(lab.plain, Listener()))
    split = lab.bench.split(lab.split)
    both = np.concatenate([split.known("members")[2], split.judged("members")[0]])
    asked = lab.dataset.x(both[asked_order(3, len(both))])
    np.testing.assert_array_equal(Listener.heard[-1], asked)


ROWS = st.integers(6, 60).flatmap(
    lambda n: st.tuples(st.permutations(range(3 * n)), hnp.arrays(bool, n), st.integers(1, 2 * n))
)


@settings(deadline=None, max_examples=150)
@given(ROWS)
def test_the_vote_is_that_of_the_nearest_rows(case: Any) -> None:
    order, member, num_asked = case
    known, asked = np.array(order[: len(member)]), np.array(order[len(member) :][:num_asked])
    votes = position_scores(known, member, asked)
    num = max(5, int(np.sqrt(len(known))))
    for row, vote in zip(asked, votes, strict=True):
        distance = np.abs(known - row)
        nearest = np.argsort(distance, kind="stable")
        inside = distance < distance[nearest[num - 1]]
        tied = distance == distance[nearest[num - 1]]
        # One row at most is tied with another on the other side: either may vote.
        least = member[inside].sum() + (member[tied].all() if tied.sum() > 1 else member[tied][0])
        most = member[inside].sum() + member[tied].any()
        if inside.sum() + tied.sum() == num:
            least = most = member[inside].sum() + member[tied].sum()
        assert least / num - 1e-12 <= vote <= most / num + 1e-12


def test_judged_records_are_scored_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x, member = rng.normal(size=(400, 12)), rng.random(400) < 0.5
    x[member, 3] += 1.0
    fit, cal = (x[:200], member[:200]), (x[200:260], member[200:260])
    whole = blind_scores(fit, cal, x[260:], seed=1)
    alone = [blind_scores(fit, cal, x[i : i + 1], seed=1) for i in (260, 300, 399)]
    assert whole is not None
    np.testing.assert_array_equal(np.concatenate(alone), whole[[0, 40, 139]])  # type: ignore[arg-type]
    assert auc_interval(whole, member[260:])[1] > 0.6


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 7, 9), (3000,), (1025,), (5,)])
def test_large_records_are_averaged_not_cut(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x, member = rng.normal(size=(600, *shape)).astype(np.float32), np.arange(600) % 2 == 0
    x[member] += 0.3  # a little everywhere
    parts = [(x[:300], member[:300]), (x[300:400], member[300:400])]
    score = blind_scores(parts[0], parts[1], x[400:], seed=0)
    assert score is not None
    assert auc_interval(score, member[400:])[1] > 0.5


def test_nothing_is_learned_where_one_kind_is_missing() -> None:
    x, member = np.zeros((8, 3)), np.arange(8) < 4
    assert blind_scores((x, member), (x[:4], member[:4]), x, seed=0) is None
