"""Every task of a cell through `execute`, on real data and a real store."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.base import Attack
from attacks.gap import Gap
from attacks.metric import Metric
from attacks.ml_leaks import MlLeaks
from attacks.nsh import Nsh
from defenses.base import Defense, Setting
from defenses.l2 import L2
from defenses.onehot import OneHot
from defenses.prototype import Prototype
from storage.artifacts import ArtifactMissing, Draft
from storage.splits import ROLES
from storage.tables import Tables
from tasks import training
from tasks.answers import Answers
from tasks.base import Rows, Task, stream
from tasks.fit_defense import FitDefense
from tasks.measure_utility import MeasureUtility
from tasks.run_attack import RunAttack
from tasks.split import rows_seen
from tasks.train_target import TrainTarget
from tasks.worker import execute

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
                known.x_of(np.setdiff1d(np.arange(200), known.rows)[:5])
            case "mixed":
                known.x_of(np.append(known.rows, known.rows.max() + 1))
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


class Broken(Defense):
    """Answers NaN."""

    VERSION: ClassVar[int] = 1

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        return {}

    def apply(self, confidence: Any, state: Mapping[str, Any], noise: Any) -> NDArray[Any]:
        return np.full_like(confidence, np.nan)


def attack(answers: Answers, plugin: Attack, **fields: Any) -> RunAttack:
    return RunAttack(seed=answers.seed, answers=answers, attack=plugin, **fields)


def facts(lab: Any, task: Task) -> dict[str, Any]:
    return dict(lab.run(task).facts("metrics"))


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


# --- execute -------------------------------------------------------------------------------------


def test_a_task_runs_once_and_the_journal_says_so(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path)
    first = execute(lab.split, own.site, "w1")
    again = execute(lab.split, own.site, "w2")
    assert first["duration_s"] > 0
    assert again == {"duration_s": 0.0}
    own.run(lab.plain)
    own.run(lab.plain)
    lines = [line.split() for line in own.site.journal.read_text().splitlines()]
    order = (lab.split, lab.target, lab.plain)
    assert [(event, kind, key) for _, _, event, kind, key in lines] == [
        (event, task.kind, task.key) for task in order for event in ("start", "done")
    ]
    measured = own.bench.open(lab.split).facts("measured")
    assert measured["worker"] == "w1"
    assert measured["device"] == "cpu"
    assert measured["duration_s"] == first["duration_s"]


def test_every_stage_repeats_to_the_bit_in_another_store(lab: Any, tmp_path: Path) -> None:
    answers = lab.defended(Prototype())
    tasks: tuple[Task, ...] = (
        lab.split,
        lab.target,
        answers.source,
        answers,
        attack(answers, Metric()),
        attack(answers, Nsh(epochs=2, width=0.1)),
    )
    other = lab.elsewhere(tmp_path)
    for task in tasks:
        one, two = lab.run(task), other.run(task)
        assert one.files == two.files
        for file in one.files:
            name, _, ending = file.partition(".")
            if ending == "json":
                timed = {"train_s", "fit_s"}
                kept = [
                    {k: v for k, v in artifact.facts(name).items() if k not in timed}
                    for artifact in (one, two)
                ]
                assert kept[0] == kept[1] or name == "measured"
                continue
            read = "table" if ending == "parquet" else "arrays"
            left, right = getattr(one, read)(name), getattr(two, read)(name)
            assert left.keys() == right.keys()
            for column in left:
                np.testing.assert_array_equal(left[column], right[column])


def test_a_task_that_fails_leaves_a_start_and_nothing_else(own_lab: Any) -> None:
    task = attack(own_lab.plain, Spy(does="nan"))
    with pytest.raises(ValueError, match="finite"):
        execute(task, own_lab.site, "w1")
    assert task.key not in own_lab.bench.artifacts
    assert not list(own_lab.site.artifacts.glob(".*"))
    assert own_lab.site.journal.read_text().split()[2:] == ["start", "RunAttack", task.key]


def test_a_missing_input_is_named(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing) as error:
        execute(lab.plain, lab.elsewhere(tmp_path).site, "w1")
    assert error.value.damaged_key == lab.split.key


def test_data_that_changed_since_the_plan_is_refused(lab: Any, tmp_path: Path) -> None:
    stale = replace(lab.split, data=replace(lab.split.data, content_hash="0" * 64))
    with pytest.raises(ValueError, match=r"'digits_binary' changed since the plan .*000000000000"):
        execute(stale, lab.elsewhere(tmp_path).site, "w1")


# --- Split, TrainTarget, Answers -----------------------------------------------------------------


def test_the_split_is_read_as_it_was_planned(lab: Any) -> None:
    planned, read = lab.split.divide(lab.dataset), lab.bench.split(lab.split)
    for name in ROLES:
        np.testing.assert_array_equal(planned.roles()[name], read.roles()[name])
    for judge in ("members", "reference"):
        for one, two in zip(planned.judged(judge), read.judged(judge), strict=True):
            np.testing.assert_array_equal(one, two)
        for one, two in zip(planned.known(judge), read.known(judge), strict=True):
            np.testing.assert_array_equal(one, two)
    card = facts(lab, lab.split)
    assert card["content"] == lab.dataset.content_hash
    assert card["roles"]["members_eval"] == 30


def test_a_target_is_its_recipe_on_exactly_the_members(lab: Any) -> None:
    artifact = lab.bench.open(lab.target)
    members = lab.bench.split(lab.split).members
    np.testing.assert_array_equal(rows_seen(artifact)["members"], members)
    assert set(rows_seen(artifact)) == {"members"}
    alone = training.train(
        lab.target.architecture,
        lab.dataset.x(members),
        lab.dataset.y[members],
        num_classes=10,
        seed=3,
    )
    for name, value in artifact.arrays("weights").items():
        np.testing.assert_array_equal(value, alone.weights[name])
    np.testing.assert_array_equal(artifact.table("history")["loss"], alone.losses)
    assert artifact.facts("metrics")["epochs"] == 60


def test_a_target_on_rows_of_its_own(lab: Any) -> None:
    rows = lab.bench.split(lab.split).reference[:20]
    task = replace(lab.target, rows=Rows(rows), reference=Rows(np.arange(10)))
    artifact = lab.run(task)
    np.testing.assert_array_equal(rows_seen(artifact)["members"], rows)
    fit, val = task.reference_rows(lab.bench)
    assert (len(fit), len(val)) == (8, 2)
    assert sorted([*fit, *val]) == list(range(10))
    view = task.trained(lab.bench)
    np.testing.assert_array_equal(view.rows, rows)
    assert view.state == {}
    x = lab.dataset.x(rows)
    assert (view.answer(x).argmax(axis=1) == lab.dataset.y[rows]).all()
    module = training.load_module(task.architecture, view.weights, (64,), 10)
    np.testing.assert_array_equal(view.answer(x), training.softmax64(training.logits(module, x)))


def test_answers_are_those_of_the_model_for_every_row_with_a_role(lab: Any) -> None:
    record, confidence = lab.plain.confidence(lab.bench)
    split = lab.bench.split(lab.split)
    held = np.concatenate([rows for name, rows in split.roles().items() if name != "population"])
    np.testing.assert_array_equal(record, np.sort(held))
    weights = lab.bench.arrays(lab.target, "weights")
    module = training.load_module(lab.target.architecture, weights, (64,), 10)
    expected = training.softmax64(training.logits(module, lab.dataset.x(record)))
    np.testing.assert_array_equal(confidence, expected)
    some = split.nonmembers_eval[::-3]
    np.testing.assert_array_equal(
        lab.plain.of(some, lab.bench), expected[np.searchsorted(record, some)]
    )


def test_the_deployed_service_answers_from_the_artifact(lab: Any) -> None:
    answers = lab.defended(Prototype(), OneHot())
    lab.run(answers)
    service = answers.service(bench := lab.bench)
    record, confidence = answers.confidence(bench)
    np.testing.assert_array_equal(service.answer(lab.dataset.x(record[::-1])), confidence[::-1])
    assert [stage.name for stage in answers.stages] == ["prototype", "onehot"]
    assert answers.undefended is lab.plain
    assert answers.target is lab.target


def test_a_defense_that_answers_nonsense_is_named(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'test_stages' answered row 0 with \[nan"):
        lab.elsewhere(tmp_path).run(lab.defended(Broken()))


# --- FitDefense ----------------------------------------------------------------------------------


def test_a_defender_sees_members_reference_and_the_model(lab: Any) -> None:
    answers = lab.defended(Diagnosed(ratio=0.5))
    artifact = lab.run(answers.source)
    setting, split = Diagnosed.seen["setting"], lab.bench.split(lab.split)
    assert Diagnosed.seen["seed"] == stream(3, "defense.fit", 0)
    for records, rows in (
        (setting.members, split.members),
        (setting.reference.fit, split.reference_fit),
        (setting.reference.val, split.reference_val),
        (setting.reference, np.concatenate([split.reference_fit, split.reference_val])),
    ):
        np.testing.assert_array_equal(records.x, lab.dataset.x(rows))
        np.testing.assert_array_equal(records.y, lab.dataset.y[rows])
    np.testing.assert_array_equal(
        setting.answer(setting.members.x), lab.plain.of(split.members, lab.bench)
    )
    seen = rows_seen(artifact)
    np.testing.assert_array_equal(seen["members"], split.members)
    assert set(seen["reference"]) == set(split.reference)
    assert not np.isin(np.concatenate([*seen.values()]), split.nonmembers).any()
    logged = artifact.facts("metrics")
    assert logged["extra_bytes"] == 24
    assert (logged["variance_ratio"], logged["kl_mean"]) == (0.5, 0.25)
    with pytest.raises(ValueError, match="epoch_s"):
        setting.train(setting.members, epoch_s=3)


def test_a_chain_is_fitted_on_the_stage_before(lab: Any) -> None:
    answers = lab.defended(OneHot(), Diagnosed(ratio=0.5))
    lab.run(answers.source)
    setting = Diagnosed.seen["setting"]
    assert Diagnosed.seen["seed"] == stream(3, "defense.fit", 1)
    released = setting.answer(setting.reference.x)
    assert set(np.unique(released)) == {0.0, 1.0}


def test_the_stored_state_is_what_fit_gave(lab: Any) -> None:
    answers = lab.defended(Prototype())
    artifact = lab.run(answers.source)
    split = lab.bench.split(lab.split)
    fitted = np.concatenate([split.reference_fit, split.reference_val])
    c_NC = lab.plain.of(fitted, lab.bench)
    label = c_NC.argmax(axis=1)
    state = artifact.arrays("state")["prototype"]
    for found in np.unique(label):
        np.testing.assert_allclose(state[found], c_NC[label == found].mean(axis=0), atol=1e-12)
    view = answers.source.trained(lab.bench)
    np.testing.assert_array_equal(view.state["prototype"], state)
    np.testing.assert_array_equal(view.answer(lab.dataset.x(fitted)), state[label])


def test_a_training_defense_and_an_output_defense_make_a_chain(lab: Any) -> None:
    trained = replace(lab.target, defense=L2(weight_decay=0.05))
    plain = Answers(seed=3, source=trained)
    fitted = FitDefense(seed=3, answers=plain, defense=OneHot())
    answers = Answers(seed=3, source=fitted)
    result = lab.run(attack(answers, Gap()))
    lab.run(utility := MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    columns = answers.columns()
    assert columns["defense"] == "l2+onehot"
    assert '"weight_decay": 0.05' in columns["defense_params"]
    # The weights are those of the decayed training, and smaller.
    members = lab.bench.split(lab.split).members
    alone = training.train(
        trained.architecture.model_copy(update={"weight_decay": 0.05}),
        lab.dataset.x(members),
        lab.dataset.y[members],
        num_classes=10,
        seed=stream(3, "defense.fit"),
    )
    weights = lab.bench.arrays(trained, "weights")
    for name, value in weights.items():
        np.testing.assert_array_equal(value, alone.weights[name])
    undefended = lab.bench.arrays(lab.target, "weights")
    assert sum((w**2).sum() for w in weights.values()) < sum(
        (w**2).sum() for w in undefended.values()
    )
    assert set(rows_seen(lab.bench.open(trained))) == {"members", "reference"}
    record, released = answers.confidence(lab.bench)
    np.testing.assert_array_equal(released, np.eye(10)[plain.of(record, lab.bench).argmax(axis=1)])
    assert result.facts("metrics")["num_queries"] == NUM_JUDGED + NUM_CAL
    assert lab.bench.open(utility).facts("timing")["fit_ratio"] > 0


# --- RunAttack -----------------------------------------------------------------------------------


def test_an_attack_is_given_what_its_threat_model_grants(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))
    own.run(attack(lab.plain, Spy()))
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
    assert Spy.seen["seed"] == stream(3, "attack.fit/test_stages")
    # What is scored: calibration and judged records, mixed.
    judged, _ = split.judged("members")
    both = own.dataset.x(np.concatenate([cal_rows, judged]))
    assert len(Spy.seen["x"]) == NUM_JUDGED + NUM_CAL
    np.testing.assert_array_equal(
        Spy.seen["x"][np.lexsort(Spy.seen["x"].T)], both[np.lexsort(both.T)]
    )


def test_scores_rows_and_metrics_are_about_the_judged_records(lab: Any) -> None:
    task = attack(lab.plain, Metric(statistic="confidence", per_class=False))
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
    found = facts(lab, attack(lab.plain, Gap()))
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
    assert facts(lab, attack(lab.plain, plugin))["num_queries"] == num_queries


def test_the_order_of_the_records_tells_nothing(lab: Any) -> None:
    lab.run(task := attack(lab.plain, Spy(does="position")))
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
        ("nan", r"'test_stages' must return 72 finite scores.*\[72\] with 1 not finite"),
        ("infinite", r"\[72\] with 72 not finite"),
        ("column", r"\[72, 1\] with 0 not finite"),
        ("short", r"\[71\]"),
        ("number", r"shape \[\]"),
    ],
)
def test_scores_that_are_no_scores_are_refused(own_lab: Any, does: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_lab.run(attack(own_lab.plain, Spy(does=does)))


def test_a_list_of_scores_will_do(lab: Any) -> None:
    found = facts(lab, attack(lab.plain, Spy(does="list")))
    assert found["attack_accuracy"] == 0.5
    assert found["threshold"] is None  # nobody is called a member


@pytest.mark.parametrize("does", ["foreign", "mixed"])
def test_rows_the_attacker_does_not_hold_are_refused(own_lab: Any, does: str) -> None:
    with pytest.raises(PermissionError, match="does not hold rows"):
        own_lab.run(attack(own_lab.plain, Spy(does=does)))


POISONED = [Gap(), Metric(), Nsh(epochs=3, width=0.1), MlLeaks(epochs=3), Spy()]


@pytest.mark.parametrize("plugin", POISONED, ids=lambda plugin: type(plugin).__name__)
def test_the_membership_of_judged_records_reaches_no_attack(
    lab: Any, tmp_path: Path, plugin: Attack
) -> None:
    """Two judged records change sides on paper, the model stays: only the metrics can tell."""
    wanted = stream(lab.split.seed, f"attack.fit/{attack(lab.plain, plugin).name}")
    trainings = lab.trainings(plugin, seed=wanted) if isinstance(plugin, MlLeaks) else ()
    task = attack(lab.plain, plugin, trainings=trainings)
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
        ("nonmembers_eval", "members_eval", "I4", ()),
        ("nonmembers_fit", "nonmembers_cal", "I5", ()),
    ],
)
def test_a_leak_is_refused_not_reported(
    lab: Any, tmp_path: Path, role: str, also: str, invariant: str, chain: tuple[Defense, ...]
) -> None:
    leaking = doctor(lab, tmp_path, move={}, copy={role: also})
    task = attack(lab.defended(*chain), Gap())
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
        own.run(attack(lab.plain, Gap()))


def flags(lab: Any, task: Task) -> list[str]:
    return list(facts(lab, task)["flags"])


@pytest.mark.parametrize(
    "plugin", [Nsh(epochs=1, learning_rate=1e-12, width=0.05), Dull()], ids=str
)
def test_an_attack_below_the_gap_it_contains_is_invalid(lab: Any, plugin: Attack) -> None:
    floor = facts(lab, attack(lab.plain, Gap()))["attack_accuracy"]
    found = facts(lab, attack(lab.plain, plugin))
    assert found["attack_accuracy"] < floor - 0.015
    assert "invalid" in found["flags"]


def test_an_attack_at_the_gap_is_valid(lab: Any) -> None:
    assert "invalid" not in flags(lab, attack(lab.plain, Dull(scale=1.0)))
    assert "invalid" not in flags(lab, attack(lab.plain, Spy(does="list")))  # claims no gap


@pytest.mark.parametrize(("ratio", "is_flagged"), [(0.0, True), (0.019, True), (0.02, False)])
def test_a_collapsed_reformer_is_flagged(lab: Any, ratio: float, is_flagged: bool) -> None:
    answers = lab.defended(Diagnosed(ratio=ratio))
    assert ("collapsed" in flags(lab, attack(answers, Gap()))) == is_flagged
    # A defense further out does not hide it.
    outer = lab.defended(Diagnosed(ratio=ratio), OneHot())
    assert ("collapsed" in flags(lab, attack(outer, Gap()))) == is_flagged


def test_an_attack_that_ignores_the_defense_is_non_adaptive(lab: Any) -> None:
    defended = lab.defended(OneHot())
    shadow = (replace(lab.target, seed=8),)
    expected = {
        attack(lab.plain, Gap()): False,
        attack(lab.plain, Gap(), fit_on="clean"): False,
        attack(lab.plain, Gap(), trainings=shadow): False,
        attack(defended, Gap()): False,
        attack(defended, Gap(), fit_on="clean"): True,
        attack(defended, Gap(), trainings=shadow): True,
        attack(defended, Gap(), trainings=shadow, adaptive=True): False,
    }
    for task, is_flagged in expected.items():
        assert ("non_adaptive" in flags(lab, task)) == is_flagged


def test_fitting_on_clean_answers_asks_the_undefended_service(lab: Any, tmp_path: Path) -> None:
    own = lab.elsewhere(tmp_path, keep=(lab.split, lab.target, lab.plain))
    defended = lab.defended(OneHot())
    for fit_on, service in (("clean", lab.plain), ("defended", defended)):
        own.run(attack(defended, Spy(), fit_on=fit_on))
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

    lab.run(attack(lab.plain, LabelSpy(does="labels")))
    for answer in Spy.seen["asked"]:
        assert answer.dtype == np.int64
        assert answer.ndim == 1


def test_judged_by_the_reference_set(lab: Any) -> None:
    task = attack(lab.plain, Gap(), judge="reference")
    judged, member = lab.bench.split(lab.split).judged("reference")
    table = lab.run(task).table("scores")
    np.testing.assert_array_equal(table["record"], judged)
    np.testing.assert_array_equal(table["is_member"], member)
    assert np.isin(judged[member], lab.bench.split(lab.split).reference).all()


# --- MeasureUtility and the tables ---------------------------------------------------------------


def test_utility_is_accuracy_and_distortion_against_the_undefended(lab: Any) -> None:
    answers = lab.defended(OneHot())
    found = facts(lab, MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    split, y = lab.bench.split(lab.split), lab.dataset.y
    for column, rows in (("train_accuracy", split.members), ("test_accuracy", split.nonmembers)):
        right = lab.plain.of(rows, lab.bench).argmax(axis=1) == y[rows]
        assert found[column] == pytest.approx(right.mean(), abs=1e-12)
    assert found["test_accuracy_drop"] == 0
    assert found["label_change_rate"] == 0
    c_NC = lab.plain.of(split.nonmembers, lab.bench)
    distortion = 2 * (1 - c_NC.max(axis=1))  # of a one-hot answer with the same label
    assert found["l1_distortion_nonmembers"] == pytest.approx(distortion.mean(), abs=1e-12)
    assert found["l1_distortion"] == found["l1_distortion_nonmembers"]
    assert found["l1_distortion_p95"] == pytest.approx(np.quantile(distortion, 0.95), abs=1e-12)
    assert found["variance_ratio"] is None
    assert found["extra_bytes"] == 8


def test_utility_of_the_undefended_costs_nothing(lab: Any) -> None:
    task = MeasureUtility(seed=3, answers=lab.plain, baseline=lab.plain)
    found = facts(lab, task)
    for column in ("l1_distortion", "label_change_rate", "test_accuracy_drop", "extra_bytes"):
        assert found[column] == 0
    timing = lab.bench.open(task).facts("timing")
    assert timing["fit_s"] == timing["fit_ratio"] == 0
    assert timing["query_s"] > 0


def test_fit_seconds_include_what_the_defense_had_trained(lab: Any) -> None:
    trained: Task = replace(lab.target, seed=9)
    fitted = FitDefense(seed=3, answers=lab.plain, defense=OneHot(), trainings=(trained,))
    answers = Answers(seed=3, source=fitted)
    lab.run(task := MeasureUtility(seed=3, answers=answers, baseline=lab.plain))
    total = (
        lab.bench.open(fitted).facts("metrics")["fit_s"]
        + lab.bench.open(trained).facts("metrics")["train_s"]
    )
    assert lab.bench.open(task).facts("timing")["fit_s"] == pytest.approx(total)


def test_finished_tasks_fill_the_tables(lab: Any, tmp_path: Path) -> None:
    answers = lab.defended(Diagnosed(ratio=0.01))
    tables = Tables(tmp_path)
    result = attack(answers, Dull(scale=1.0))
    utility = MeasureUtility(seed=3, answers=answers, baseline=lab.plain)
    for task in (result, utility):
        for table, rows in task.table_rows(lab.run(task)).items():
            tables.write(table, task.key, rows)
    rows = result.table_rows(lab.bench.open(result))
    row = rows["results"][0]
    assert row["defense"] == row["attack"] == "test_stages"
    assert row["task_key"] == result.key
    assert row["noise_policy"] == "none"
    assert row["dataset_hash"] == lab.dataset.content_hash
    assert "collapsed" in row["flags"]
    assert (row["num_members"], row["num_nonmembers"]) == (30, 30)
    assert {score["record"] for score in rows["scores"]} == set(
        lab.bench.split(lab.split).judged("members")[0].tolist()
    )
    assert utility.table_rows(lab.bench.open(utility))["utility"][0]["variance_ratio"] == 0.01
    assert isinstance(lab.target, TrainTarget)
    assert lab.target.table_rows(lab.bench.open(lab.target)) == {}
