"""An attack knows what it is granted, and a leak is refused, not reported."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from attacks.base import Attack
from attacks.gap import Gap
from attacks.metric import Metric
from attacks.ml_leaks import MlLeaks
from attacks.nsh import Nsh
from defenses.base import Defense
from defenses.onehot import OneHot
from storage.artifacts import Draft
from storage.splits import ROLES
from tasks.base import Task, stream
from tasks.split import rows_seen

NUM_JUDGED, NUM_CAL = 60, 12  # half of 60 members and as many others; a fifth of the known half


class Spy(Attack):
    """Does what a test wants, and keeps what it was given."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"

    does: str = "score"
    seen: ClassVar[dict[str, Any]] = {}

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        Spy.seen = {"query": query, "known": known, "x": x, "y": y, "seed": seed}
        n = len(y)
        match self.does:
            case "nan":
                return np.where(np.arange(n) == 3, np.nan, 0.0)
            case "infinite":
                return np.full(n, -np.inf)
            case "column":
                return np.zeros((n, 1))
            case "short":
                return np.zeros(n - 1)
            case "number":
                return 0.5
            case "list":
                return [0.25] * n
            case "foreign":
                held = np.union1d(known.rows, known.held.population_rows)
                known.x_of(np.setdiff1d(np.arange(200), held)[:5])
            case "mixed":
                held = np.union1d(known.rows, known.held.population_rows)
                known.x_of(np.append(known.rows, np.setdiff1d(np.arange(200), held)[0]))
            case "position":
                return np.arange(n)
        return query(x)[np.arange(n), y]


class Dull(Attack):
    """Sees what the gap attack sees, and makes `scale` of it."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    THRESHOLD: ClassVar[float | None] = 0.5
    CONTAINS_GAP: ClassVar[bool] = True

    scale: float = 0.0

    def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
        return self.scale * (query(x).argmax(axis=1) == y)


def doctor(
    lab: Any, folder: Path, *, move: dict[str, str], copy: dict[str, str] | None = None
) -> Any:
    """A store whose split has rows moved or copied between roles: the first of each role."""
    other = lab.elsewhere(folder)
    table = lab.bench.open(lab.split).table("split")
    role, row = table["role"].astype(object), table["row"]
    first = {name: int(np.flatnonzero(role == name)[0]) for name in ROLES if (role == name).any()}
    extra = [(to, row[first[name]]) for name, to in (copy or {}).items()]
    role = role.copy()
    for name, to in move.items():
        role[first[name]] = to
    role = np.append(role, [to for to, _ in extra]).astype(str)
    row = np.append(row, [number for _, number in extra]).astype(np.int64)

    def write(draft: Draft) -> None:
        draft.table("split", {"role": role, "row": row})

    other.bench.artifacts.put(lab.split.key, lab.split.description, write)
    return other


def test_an_attack_is_given_what_its_threat_model_grants(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))
    own.run(lab.attack(lab.plain, Spy()))
    split, known = own.bench.split(lab.split), Spy.seen["known"]
    fit_rows, fit_member, cal_rows, cal_member = split.known("members")
    for part, rows, member in (
        (known.fit, fit_rows, fit_member),
        (known.cal, cal_rows, cal_member),
    ):
        np.testing.assert_array_equal(part.x, own.dataset.x(rows))
        np.testing.assert_array_equal(part.y, own.dataset.y[rows])
        np.testing.assert_array_equal(part.is_member, member)
    assert sorted(known.rows) == sorted([*fit_rows, *cal_rows])
    x, y = known.x_of(known.rows[:4])
    np.testing.assert_array_equal(x, own.dataset.x(known.rows[:4]))
    np.testing.assert_array_equal(y, own.dataset.y[known.rows[:4]])
    assert Spy.seen["seed"] == stream(3, "attack.fit/test_run_attack")
    # What is scored: calibration and judged records, mixed.
    judged, _ = split.judged("members")
    both = own.dataset.x(np.concatenate([cal_rows, judged]))
    assert len(Spy.seen["x"]) == NUM_JUDGED + NUM_CAL
    np.testing.assert_array_equal(
        Spy.seen["x"][np.lexsort(Spy.seen["x"].T)], both[np.lexsort(both.T)]
    )


def test_scores_rows_and_metrics_are_about_the_judged_records(lab: Any) -> None:
    task = lab.attack(lab.plain, Metric(statistic="confidence", per_class=False))
    artifact = lab.run(task)
    judged, member = lab.bench.split(lab.split).judged("members")
    fit_rows, _, cal_rows, cal_member = lab.bench.split(lab.split).known("members")
    table, figures = artifact.table("scores"), artifact.facts("metrics")
    np.testing.assert_array_equal(table["record"], judged)
    np.testing.assert_array_equal(table["is_member"], member)
    # The score is p_y less a threshold, the same for all: by hand from the stored answers.
    p = lab.plain.of(judged, lab.bench)[np.arange(len(judged)), lab.dataset.y[judged]]
    offset = figures["sign"] * table["score"] - p
    np.testing.assert_allclose(offset, offset[0], atol=1e-12)
    np.testing.assert_array_equal(table["decision"], table["score"] > figures["threshold"])
    right = table["decision"] == member
    accuracy = (right[member].mean() + right[~member].mean()) / 2
    assert figures["attack_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    seen = rows_seen(artifact)
    for role, rows in (("fit", fit_rows), ("cal", cal_rows), ("judged", judged)):
        np.testing.assert_array_equal(seen[role], rows)
    assert len(cal_member) == NUM_CAL


def test_the_gap_attack_reads_the_accuracy_gap_off_the_answers(lab: Any) -> None:
    judged, member = lab.bench.split(lab.split).judged("members")
    right = lab.plain.of(judged, lab.bench).argmax(axis=1) == lab.dataset.y[judged]
    gap = (right[member].mean() - right[~member].mean()) / 2
    found = lab.facts(lab.attack(lab.plain, Gap()))
    assert found["attack_accuracy"] == pytest.approx(0.5 + gap, abs=1e-12)
    assert gap > 0.05


@pytest.mark.parametrize(
    ("plugin", "num_queries"),
    [
        (Gap(), NUM_JUDGED + NUM_CAL),
        (Spy(), NUM_JUDGED + NUM_CAL),
        (Metric(), NUM_JUDGED + NUM_CAL + 60),  # and all 60 known records to fit on
        (Spy(does="position"), 0),
    ],
    ids=str,
)
def test_queries_are_counted_to_the_unit(lab: Any, plugin: Attack, num_queries: int) -> None:
    assert lab.facts(lab.attack(lab.plain, plugin))["num_queries"] == num_queries


def test_the_order_of_the_records_tells_nothing(lab: Any) -> None:
    lab.run(task := lab.attack(lab.plain, Spy(does="position")))
    table = lab.bench.open(task).table("scores")
    position = table["score"]
    z = np.corrcoef(position, table["is_member"])[0, 1] * np.sqrt(len(position) - 1)
    assert abs(z) < 4
    # Calibration records are not simply first.
    assert position.min() < NUM_CAL
    assert sorted(position) != list(range(NUM_CAL, NUM_CAL + NUM_JUDGED))


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("nan", r"'test_run_attack' must return 72 finite scores.*\[72\] with 1 not finite"),
        ("infinite", r"\[72\] with 72 not finite"),
        ("column", r"\[72, 1\] with 0 not finite"),
        ("short", r"\[71\]"),
        ("number", r"shape \[\]"),
    ],
)
def test_scores_that_are_no_scores_are_refused(own_lab: Any, does: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_lab.run(own_lab.attack(own_lab.plain, Spy(does=does)))


def test_a_list_of_scores_will_do(lab: Any) -> None:
    found = lab.facts(lab.attack(lab.plain, Spy(does="list")))
    assert found["attack_accuracy"] == 0.5
    assert found["threshold"] is None  # nobody is called a member


@pytest.mark.parametrize("does", ["foreign", "mixed"])
def test_rows_the_attacker_does_not_hold_are_refused(own_lab: Any, does: str) -> None:
    with pytest.raises(PermissionError, match="does not hold rows"):
        own_lab.run(own_lab.attack(own_lab.plain, Spy(does=does)))


POISONED = [Gap(), Metric(), Nsh(epochs=3, width=0.1), MlLeaks(epochs=3), Spy()]


@pytest.mark.parametrize("plugin", POISONED, ids=lambda plugin: type(plugin).__name__)
def test_the_membership_of_judged_records_reaches_no_attack(
    lab: Any, tmp_path: Path, plugin: Attack
) -> None:
    """Two judged records change sides on paper, the model stays: only the metrics can tell."""
    wanted = stream(lab.split.seed, f"attack.fit/{lab.attack(lab.plain, plugin).name}")
    trainings = lab.trainings(plugin, seed=wanted) if isinstance(plugin, MlLeaks) else ()
    task = lab.attack(lab.plain, plugin, trainings=trainings)
    honest = lab.run(task)

    swapped = {"members_eval": "nonmembers_eval", "nonmembers_eval": "members_eval"}
    other = doctor(lab, tmp_path, move=swapped)
    original = lab.bench.open(lab.target)

    def write(draft: Draft) -> None:
        """The same weights, said to come from the doctored members."""
        draft.arrays("weights", original.arrays("weights"))
        members = other.bench.split(lab.split).members
        draft.table("rows", {"role": np.full(len(members), "members"), "row": members})

    other.bench.artifacts.put(lab.target.key, lab.target.description, write)
    poisoned = other.run(task)

    one, two = honest.table("scores"), poisoned.table("scores")
    np.testing.assert_array_equal(one["record"], two["record"])
    assert (one["is_member"] != two["is_member"]).sum() == 2
    np.testing.assert_array_equal(one["score"], two["score"])
    np.testing.assert_array_equal(one["decision"], two["decision"])
    for name in ("threshold", "sign", "num_queries"):
        assert honest.facts("metrics")[name] == poisoned.facts("metrics")[name]


@pytest.mark.parametrize(
    ("role", "also", "invariant", "chain"),
    [
        ("members_eval", "members_fit", "I1", ()),
        ("nonmembers_eval", "nonmembers_fit", "I1", ()),
        ("members_eval", "members_cal", "I2", ()),
        ("nonmembers_eval", "reference_fit", "I3", (OneHot(),)),
        ("nonmembers_eval", "members_eval", "I5", ()),
        ("nonmembers_fit", "nonmembers_cal", "I5", ()),
    ],
)
def test_a_leak_is_refused_not_reported(
    lab: Any, tmp_path: Path, role: str, also: str, invariant: str, chain: tuple[Defense, ...]
) -> None:
    leaking = doctor(lab, tmp_path, move={}, copy={role: also})
    task = lab.attack(lab.defended(*chain), Gap())
    with pytest.raises(RuntimeError, match=rf"would leak, so it is not reported: {invariant}: "):
        leaking.run(task)
    assert task.key not in leaking.bench.artifacts


def test_a_target_trained_on_judged_records_is_refused(lab: Any, tmp_path: Path) -> None:
    # It logged the members the split had; the split says otherwise now.
    other = doctor(lab, tmp_path, move={"members_eval": "population"})
    own = lab.elsewhere(tmp_path / "own", keep=(lab.target,))
    table = other.bench.open(lab.split).table("split")
    own.bench.artifacts.put(
        lab.split.key, lab.split.description, lambda draft: draft.table("split", table)
    )
    with pytest.raises(RuntimeError, match="I4: the target trained on rows that are not members"):
        own.run(lab.attack(lab.plain, Gap()))


def flags(lab: Any, task: Task) -> list[str]:
    return list(lab.facts(task)["flags"])


@pytest.mark.parametrize(
    "plugin", [Nsh(epochs=1, learning_rate=1e-12, width=0.02), Dull()], ids=str
)
def test_an_attack_below_the_gap_it_contains_is_invalid(lab: Any, plugin: Attack) -> None:
    floor = lab.facts(lab.attack(lab.plain, Gap()))["attack_accuracy"]
    found = lab.facts(lab.attack(lab.plain, plugin))
    assert found["attack_accuracy"] < floor - 0.015
    assert "invalid" in found["flags"]


def test_an_attack_at_the_gap_is_valid(lab: Any) -> None:
    assert "invalid" not in flags(lab, lab.attack(lab.plain, Dull(scale=1.0)))
    assert "invalid" not in flags(lab, lab.attack(lab.plain, Spy(does="list")))  # claims no gap


@pytest.mark.parametrize(("ratio", "is_flagged"), [(0.0, True), (0.019, True), (0.02, False)])
def test_a_collapsed_reformer_is_flagged(
    lab: Any, diagnosed: Any, ratio: float, is_flagged: bool
) -> None:
    answers = lab.defended(diagnosed(ratio=ratio))
    assert ("collapsed" in flags(lab, lab.attack(answers, Gap()))) == is_flagged
    # A defense further out does not hide it.
    outer = lab.defended(diagnosed(ratio=ratio), OneHot())
    assert ("collapsed" in flags(lab, lab.attack(outer, Gap()))) == is_flagged


def test_an_attack_that_ignores_the_defense_is_non_adaptive(lab: Any) -> None:
    defended = lab.defended(OneHot())
    shadow = (replace(lab.target, seed=8),)
    expected = {
        lab.attack(lab.plain, Gap()): False,
        lab.attack(lab.plain, Gap(), fit_on="clean"): False,
        lab.attack(lab.plain, Gap(), trainings=shadow): False,
        lab.attack(defended, Gap()): False,
        lab.attack(defended, Gap(), fit_on="clean"): True,
        lab.attack(defended, Gap(), trainings=shadow): True,
        lab.attack(defended, Gap(), trainings=shadow, adaptive=True): False,
    }
    for task, is_flagged in expected.items():
        assert ("non_adaptive" in flags(lab, task)) == is_flagged


def test_fitting_on_clean_answers_asks_the_undefended_service(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))
    defended = lab.defended(OneHot())
    for fit_on, service in (("clean", lab.plain), ("defended", defended)):
        own.run(lab.attack(defended, Spy(), fit_on=fit_on))
        known = Spy.seen["known"]
        rows = known.rows[:5]
        np.testing.assert_array_equal(known.query(own.dataset.x(rows)), service.of(rows, own.bench))
        np.testing.assert_array_equal(
            Spy.seen["query"](own.dataset.x(rows)), defended.of(rows, own.bench)
        )


def test_an_attack_of_label_access_gets_labels(lab: Any) -> None:
    class LabelSpy(Spy):
        ACCESS = "label"

        def score(self, query: Any, known: Any, x: Any, y: Any, *, seed: int) -> Any:
            Spy.seen = {"asked": [query(x), known.query(known.fit.x), query.timed(x)[0]]}
            return np.zeros(len(y))

    lab.run(lab.attack(lab.plain, LabelSpy(does="labels")))
    for answer in Spy.seen["asked"]:
        assert answer.dtype == np.int64
        assert answer.ndim == 1


def test_judged_by_the_reference_set(lab: Any) -> None:
    task = lab.attack(lab.plain, Gap(), judge="reference")
    judged, member = lab.bench.split(lab.split).judged("reference")
    table = lab.run(task).table("scores")
    np.testing.assert_array_equal(table["record"], judged)
    np.testing.assert_array_equal(table["is_member"], member)
    assert np.isin(judged[member], lab.bench.split(lab.split).reference).all()
