"""One's own data, divided by a column: runs, what is refused, and what `data check` finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.data_check import Column, label_findings, membership_findings, separation
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage.datasets import Source, load

ROWS = 360
WORDS = {"members": "train", "reference": "calib", "nonmembers": ["test", "holdout"]}
NUMBERS = {"members": 0, "reference": 1, "nonmembers": [2, 3]}


def records(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and labels, and the role of each row as a number: 4 and NaN are none."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, ROWS)
    x = rng.normal(size=(ROWS, 6)).astype(np.float32)
    x[:, 0] += label
    frame = pd.DataFrame({name: x[:, i] for i, name in enumerate("abcdeg")})
    role = rng.permutation(np.resize([0.0, 1.0, 2.0, 0.0, 1.0, 3.0, 4.0, np.nan], ROWS))
    return frame.assign(label=label), role


def words(role: np.ndarray) -> np.ndarray:
    return np.array([{0: "train", 1: "calib", 2: "test", 3: "holdout"}.get(r, "") for r in role])


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A Parquet file whose roles are numbers, which would make a feature that tells everything."""
    frame, role = records()
    path = tmp_path / "numbered.parquet"
    frame.assign(fold=role).to_parquet(path)
    return path


@pytest.fixture
def worded(tmp_path: Path) -> Path:
    """The same rows as npz, with words for the roles."""
    frame, role = records()
    x = frame.drop(columns="label").to_numpy()
    path = tmp_path / "worded.npz"
    np.savez(path, x=x, y=frame["label"].to_numpy(), fold=words(role))
    return path


def experiment(folder: Path, path: Path, split: Any, name: str = "own", **keys: Any) -> Path:
    file = folder / "own.yaml"
    content = {
        "name": name,
        "datasets": [{"name": "clinic", "path": str(path), "split": split, **keys}],
        "target": {"architecture": "mlp_s", "epochs": 8, "hidden": [16]},
        "defenses": ["none", "prototype"],
        "attacks": ["gap", {"name": "nsh", "epochs": 2, "width": 0.1}],
    }
    file.write_text(yaml.safe_dump(content))
    return file


def command(*args: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "fault of Sfumato" not in result.output, result.output
    return result.exit_code, " ".join(result.output.split())


def results(tmp_path: Path, name: str, path: Path, split: Any) -> pd.DataFrame:
    file = experiment(tmp_path, path, split, name)
    code, said = command("run", file, "--store", tmp_path / "store", "--inline")
    assert code == 0, said
    columns = ["label", "attack_label", "attack_accuracy", "auc", "num_members", "num_nonmembers"]
    frame = Store(tmp_path / "store").tables.frame("results", name)
    kept = [column for column in columns if column in frame]
    return frame[kept].sort_values(["label", "attack_label"]).reset_index(drop=True)


# -- running --------------------------------------------------------------------------------------


def test_a_column_of_roles_is_obeyed_and_seen_by_no_model(
    tmp_path: Path, numbered: Path, worded: Path
) -> None:
    _, role = records()
    by_number = {"column": "fold", **NUMBERS}
    plan = make_plan(load_experiment(str(experiment(tmp_path, numbered, by_number))), None)
    task = next(task for task in plan.tasks.values() if task.kind == "Split")
    dataset = load(task.data.source)
    assert dataset.columns == tuple("abcdeg")
    assert dataset.shape == (6,)
    split = task.divide(dataset)
    assert sorted(split.members) == np.flatnonzero(role == 0).tolist()
    assert sorted(split.reference) == np.flatnonzero(role == 1).tolist()
    assert sorted(split.nonmembers) == np.flatnonzero((role == 2) | (role == 3)).tolist()
    assert sorted(split.population) == np.flatnonzero((role == 4) | np.isnan(role)).tolist()
    # To the models the two files are the same, though in one the roles are numbers.
    first = results(tmp_path, "first", numbered, by_number)
    second = results(tmp_path, "second", worded, {"column": "fold", **WORDS})
    assert len(first) == 4
    pd.testing.assert_frame_equal(first, second)


def test_the_members_are_those_of_the_column_under_every_seed(tmp_path: Path, worded: Path) -> None:
    file = experiment(tmp_path, worded, {"column": "fold", **WORDS})
    plan = make_plan(load_experiment(str(file), ["seeds=[0,1]"]), None)
    tasks = [task for task in plan.tasks.values() if task.kind == "Split"]
    one, other = (task.divide(load(task.data.source)) for task in tasks)
    assert sorted(one.members) == sorted(other.members)
    assert sorted(one.members_eval) != sorted(other.members_eval)


def test_content_is_other_where_a_column_is_a_feature_and_where_it_is_not(
    tmp_path: Path, numbered: Path, worded: Path
) -> None:
    def content(path: Path, *beside: str) -> str:
        return load(Source("own", str(path), beside=beside)).content_hash

    frame, role = records()
    frame.assign(fold=np.nan_to_num(role)).to_parquet(tmp_path / "filled.parquet")
    assert load(Source("own", str(tmp_path / "filled.parquet"))).shape == (7,)
    filled = tmp_path / "filled.parquet"
    assert len({content(filled), content(filled, "fold"), content(filled, "a")}) == 3
    assert content(worded) == content(worded, "fold")
    names = {f"f{i:03d}": frame.iloc[:, i] for i in range(6)}
    named = tmp_path / "named.parquet"
    pd.DataFrame({**names, "label": frame["label"], "fold": words(role)}).to_parquet(named)
    assert content(named) == content(named, "fold")


def test_what_an_experiment_resolves_to_loads_as_the_same(tmp_path: Path, worded: Path) -> None:
    first = load_experiment(str(experiment(tmp_path, worded, {"column": "fold", **WORDS})))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(first.resolved()))
    assert load_experiment(str(again)) == first


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ({"column": "fould", **WORDS}, ("there is no column 'fould'", "did you mean 'fold'?")),
        ({"column": "fold"}, ("split: no row has fold = 'members'", "'train' (90)", "members:")),
        ({"column": "fold", **WORDS, "members": "tarin"}, ("no row has fold = 'tarin'",)),
        ({"colunm": "fold"}, ("split.colunm: is not a key here; did you mean 'column'?",)),
        ({"column": "fold", **WORDS, "memebrs": "train"}, ("split.memebrs", "'members'?")),
        ({"column": "fold", **WORDS, "untrained": 20}, ("split.untrained: is not a key here",)),
        ({"column": "fold", **WORDS, "reference": []}, ("split.reference: must not be empty",)),
        ({"column": "fold", **WORDS, "reference": [""]}, ("split.reference", "have no role")),
        ({"column": "fold", **WORDS, "reference": {"a": 1}}, ("reference: must be a value of",)),
        ({"column": "fold", **WORDS, "reference": "train"}, ("'train' stands for members and",)),
        ({"column": 3}, ("split.column: must be text (quote it), got 3",)),
        ({"column": "y"}, ("'y' is part of the records",)),
        (3, ("split: must be a mapping such as", "{column: role}", "got 3")),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(
    tmp_path: Path, worded: Path, split: Any, parts: tuple[str, ...]
) -> None:
    code, said = command("plan", experiment(tmp_path, worded, split), "--store", tmp_path / "s")
    assert code == 2, said
    for part in parts:
        assert part in said, said


def test_more_that_is_refused(tmp_path: Path, worded: Path) -> None:
    split = {"column": "fold", **WORDS}
    file = experiment(tmp_path, worded, split, judge="untrained")
    code, said = command("plan", file, "--store", tmp_path / "s")
    assert (code, "the column fold names none; give sizes" in said) == (2, True), said
    file.write_text("datasets: [{name: synth_s, split: {column: fold}}]\nattacks: [gap]\n")
    code, said = command("plan", file, "--store", tmp_path / "s")
    assert (code, "not read from a file" in said) == (2, True), said


def test_equal_records_in_two_roles_are_refused_unless_one_is_kept(tmp_path: Path) -> None:
    frame, role = records()
    member, other = np.flatnonzero(role == 0)[0], np.flatnonzero(role == 2)[0]
    frame.loc[other, list("abcdeg")] = frame.loc[member, list("abcdeg")]
    path = tmp_path / "twins.parquet"
    frame.assign(fold=words(role)).to_parquet(path)
    split = {"column": "fold", **WORDS}
    code, said = command("plan", experiment(tmp_path, path, split), "--store", tmp_path / "s")
    assert code == 2
    for part in ("datasets[0].split: rows", f"row {member} one of the members ('train')", "drop"):
        assert part in said, said
    file = experiment(tmp_path, path, split, dedup="drop")
    assert command("plan", file, "--store", tmp_path / "s")[0] == 0
    experiment_file = load_experiment(str(file))
    plan = make_plan(experiment_file, None)
    task = next(task for task in plan.tasks.values() if task.kind == "Split")
    divided = task.divide(load(task.data.source))
    assert member in divided.members
    assert other not in divided.nonmembers


# -- data list and data check ---------------------------------------------------------------------


def test_data_list_says_what_is_here(tmp_path: Path) -> None:
    frame, _ = records()
    frame.to_parquet(tmp_path / "clinic.parquet")
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("no data")
    code, said = command("data", "list", "--data-dir", tmp_path)
    assert code == 0
    assert "clinic yes 360 3 6 continuous clinic.parquet" in said
    assert "broken no broken.npz: " in said
    assert "synth_s yes 6,000 20 128 binary comes with Sfumato" in said
    assert "texas100 no 67,330 100 6169 binary" in said
    assert "notes" not in said


ROLES = np.array(["members", "reference", "nonmembers", ""])


def roled(seed: int = 0, rows: int = 1200) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 4)).astype(np.float32) + 0.3 * label[:, None]
    frame = pd.DataFrame(x, columns=[f"f{i:03d}" for i in range(4)])
    return frame.assign(label=label, role=rng.permutation(np.resize(ROLES, rows)))


def checked(tmp_path: Path, frame: pd.DataFrame) -> tuple[int, str]:
    path = tmp_path / "clinic.parquet"
    frame.to_parquet(path)
    return command("data", "check", path, "--split-column", "role")


def test_clean_data_has_no_risk(tmp_path: Path) -> None:
    frame = roled()
    code, said = checked(tmp_path, frame)
    assert code == 0, said
    assert "risk " not in said
    for part in ("records 1,200", "shape 4 (continuous)", "classes 3, of", "duplicates none"):
        assert part in said, said
    for part in ("300 members, 300 reference, 300 nonmembers", "near-constant 0 of 4 features"):
        assert part in said, said


def later(frame: pd.DataFrame) -> pd.DataFrame:
    """Nonmembers collected a year after the members."""
    day = np.random.default_rng(1).integers(0, 730, len(frame)).astype(np.float32)
    return frame.assign(f004=day + 365 * (frame["role"] == "nonmembers"))


def sites(frame: pd.DataFrame) -> pd.DataFrame:
    """Members of one hospital, everybody else of two others that lie around it in the alphabet."""
    others = np.random.default_rng(2).choice(["Aarau", "Zug"], len(frame))
    return frame.assign(site=np.where(frame["role"] == "members", "Basel", others))


def identifiers(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows numbered one role after the other."""
    number = np.empty(len(frame), dtype=np.int64)
    number[np.argsort(frame["role"], kind="stable")] = np.arange(len(frame))
    return frame.assign(patient=number)


def copied_label(frame: pd.DataFrame) -> pd.DataFrame:
    noise = np.random.default_rng(3).normal(size=len(frame)).astype(np.float32)
    return frame.assign(f004=-2 * frame["label"] + 0.01 * noise)


def one_class_coded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(f004=(frame["label"] == 2).astype(np.float32))


def classes_apart(frame: pd.DataFrame) -> pd.DataFrame:
    moved = (frame["role"] == "members") & (np.random.default_rng(4).random(len(frame)) < 0.3)
    return frame.assign(label=np.where(moved, 0, frame["label"]))


def twins(frame: pd.DataFrame) -> pd.DataFrame:
    copied = frame.copy()
    members = copied.index[copied["role"] == "members"][:5]
    others = copied.index[copied["role"] == "nonmembers"][:5]
    features = [name for name in frame if name.startswith("f")]
    copied.loc[others, features] = copied.loc[members, features].to_numpy()
    return copied


@pytest.mark.parametrize(
    ("plant", "parts"),
    [
        (later, ("risk membership column 'f004' alone", "AUC 0.", "drop it, or name the true")),
        (sites, ("risk membership column 'site' alone", "AUC 1.000", "draw both at random")),
        (identifiers, ("risk membership column 'patient'", "AUC 1.000", "as an identifier's do")),
        (copied_label, ("risk label column 'f004' alone tells every class", "accuracy 1.000")),
        (one_class_coded, ("risk label column 'f004' alone tells class 2 from the others",)),
        (classes_apart, ("risk classes class tells membership",)),
        (twins, ("risk duplicates 5 records (10 rows) have more than one role", "dedup: drop")),
    ],
)
def test_a_planted_leak_is_found_and_nothing_else_is(
    tmp_path: Path, plant: Any, parts: tuple[str, ...]
) -> None:
    code, said = checked(tmp_path, plant(roled()))
    assert code == 1, said
    for part in parts:
        assert part in said, said
    assert said.count("risk ") == 1, said


def test_an_experiment_is_checked_with_its_splits(tmp_path: Path, worded: Path) -> None:
    file = experiment(tmp_path, worded, {"column": "fold", **WORDS})
    code, said = command("data", "check", file)
    assert code == 0, said
    assert "column fold: 90 members, 90 reference, 90 nonmembers" in said
    sizes = {"members": 90, "reference": 90, "nonmembers": 90}
    code, said = command("data", "check", experiment(tmp_path, worded, sizes))
    assert code == 0, said
    assert "by sizes, seed 0: 90 members, 90 reference, 90 nonmembers" in said


def test_what_cannot_be_checked_is_refused(tmp_path: Path, worded: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((worded, "--split-column", "fold"), "0 rows are 'members', at least 10 are needed"),
        ((worded, "--split-column", "fould"), "did you mean 'fold'?"),
        ((tmp_path / "gone.npz",), "gone.npz"),
        (("synth_q",), "no dataset is named 'synth_q'"),
        (("quickstart", "--split-column", "fold"), "says itself how its datasets are divided"),
    ]
    for args, part in cases:
        code, said = command("data", "check", *args)
        assert (code, part in said) == (2, True), said


def test_a_sorted_file_is_noted_and_is_no_risk(tmp_path: Path) -> None:
    code, said = checked(tmp_path, roled().sort_values("label"))
    assert code == 0, said
    assert "note order the file is sorted by class" in said


# -- the arithmetic -------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_separation_is_the_share_of_pairs_in_order(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    is_member = rng.permutation(np.arange(60) < 25)
    values = rng.integers(0, distinct, 60) + 0.5 * distinct * is_member
    ones, zeros = values[is_member][:, None], values[~is_member][None]
    pairs = np.mean((ones > zeros) + 0.5 * (ones == zeros))
    assert separation(values, is_member) >= max(pairs, 1 - pairs) - 1e-12
    assert separation(-values, is_member) >= max(pairs, 1 - pairs) - 1e-12


def test_columns_of_chance_are_never_a_risk() -> None:
    rng = np.random.default_rng(0)
    for num, positive in ((60, 20), (400, 40), (5000, 2500)):
        is_member = rng.permutation(np.arange(num) < positive)
        y = rng.choice(4, num, p=[0.97, 0.01, 0.01, 0.01])
        columns = [Column(str(i), rng.normal(size=num)) for i in range(100)]
        columns += [Column(f"bit{i}", rng.integers(0, 2, num)) for i in range(100)]
        columns += [Column(f"text{i}", rng.choice(["a", "b", "c"], num)) for i in range(20)]
        found = [*membership_findings(columns, is_member), *label_findings(columns, y)]
        assert [finding.verdict for finding in found] == ["ok", "ok"]


def test_many_leaks_are_told_in_a_few_lines() -> None:
    is_member = np.arange(200) % 2 == 0
    columns = [Column(f"c{i}", is_member * (i + 1.0)) for i in range(9)]
    rng = np.random.default_rng(0)
    order = rng.permutation(200)
    shuffled = [Column(c.name, c.values[order]) for c in columns]
    found = list(membership_findings(shuffled, is_member[order]))
    assert [finding.verdict for finding in found] == ["risk"] * 6
    assert found[-1].message.startswith("so do 4 more columns: c")
