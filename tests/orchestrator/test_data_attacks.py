"""Attacks on records and attributes, from file to table."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from orchestrator.check import load_experiment
from orchestrator.entries import AttackEntry, attack_label
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage import datasets
from storage.tables import equal

INVERSION = {
    "name": "inversion",
    "epochs": 3,
    "width": 4,
    "learning_rates": [1e-3],
    "num_records": 60,
}
DIGITS = {"name": "digits", "split": {"members": 80, "reference": 80, "nonmembers": 80}}
TARGET = {"architecture": "mlp_s", "epochs": 4, "hidden": [16]}


@pytest.fixture(scope="module")
def visits(tmp_path_factory) -> Path:
    """Records whose class follows their bits, with a column that does, and others of no use."""
    rng = np.random.default_rng(0)
    x = (rng.random((600, 12)) < 0.5).astype(np.uint8)
    y = 2 * x[:, 0] + x[:, 1]
    path = tmp_path_factory.mktemp("data") / "visits.npz"
    columns = {
        "sens": np.where(rng.random(600) < 0.8, x[:, 0], 1 - x[:, 0]),
        "city": np.array(["north", "south", ""])[rng.integers(3, size=600)],
        "number": np.arange(600),
        "constant": np.zeros(600, dtype=np.int64),
    }
    np.savez(path, x=x, y=y.astype(np.int64), **columns)
    return path


def on_visits(path: Path, *attacks: object) -> dict:
    data = {"name": "visits", "path": str(path)}
    data["split"] = {"members": 120, "reference": 120, "nonmembers": 120}
    return {"datasets": [data], "attacks": list(attacks), "target": TARGET}


def test_an_attribute_is_inferred_from_file_to_table(place, visits):
    attack = {"name": "attribute", "column": "sens", "epochs": 20}
    hidden = {**attack, "layer": "hidden", "against": ["none"]}
    keys = on_visits(visits, attack, {**attack, "column": "city"}, hidden, "gap")
    said = place.run(defenses=["none", "prototype"], **keys)
    assert said.code == 0, said.text
    for words in ("what answers tell of sens", "what answers tell of city", "worst of these"):
        assert words in said.flat
    rows = place.rows("attribute")
    white = rows[rows["layer"] == "hidden"]
    assert white["threat_model"].tolist() == ["white-box"]
    assert white["num_queries"].tolist() == [0]
    rows = rows[rows["layer"] == "answers"].set_index(["attribute", "defense"]).sort_index()
    assert len(rows) == 4
    known = rows.loc[("sens", "none")]
    assert known["balanced_accuracy"] > 0.7  # the class tells it in four cases of five
    assert rows.loc[("city", "none"), "num_values"] == 2
    assert rows.loc[("city", "none"), "num_known"] < known["num_known"] == 120
    assert known["num_queries"] == 120
    assert len(place.rows("results")) == 2
    asked = "SELECT attribute, label, balanced_accuracy FROM mean_attribute WHERE current"
    answered = place.command("query", asked, "--store", place.store, "--format", "csv")
    assert len(answered.text.splitlines()) == 6
    told = place.command("history", "--store", place.store, "--columns", "attribute,task_key")
    assert told.text.count("sens") == 3
    shown = place.command("show", known["task_key"], "--store", place.store)
    assert "fills a cell of tiny" in shown.flat
    assert "balanced_accuracy" in shown.flat
    status = place.command("status", place.file(**keys, seeds=[0, 1]), "--store", place.store)
    assert status.code == 0
    assert place.run(defenses=["none", "prototype"], **keys).flat.count("nothing to run") == 1


def test_records_are_rebuilt_from_file_to_table(place, tmp_path):
    keys = {"datasets": [DIGITS], "attacks": [INVERSION], "target": TARGET}
    said = place.run(defenses=["none", "onehot"], **keys)
    assert said.code == 0, said.text
    assert "how near rebuilt records come" in said.flat
    assert "guessing the mean of the attacker's records" in said.flat
    assert "worst of these" not in said.flat
    rows = place.rows("inversion").set_index("defense")
    assert rows["num_queries"].tolist() == [60, 60]
    assert (rows["num_members"] == 40).all()
    assert (rows["inversion_error"] > 0).all()
    assert rows["mean_error"].nunique() == 1
    assert rows["reidentified_originals"].nunique() == 1
    assert not (place.store / "tables" / "worst").exists()
    path = place.store / "experiments" / "tiny" / "images" / "digits-0.png"
    assert f"images: {path}" in said.flat
    with Image.open(path) as image:
        assert image.height > 3 * 64
    written = tmp_path / "out.png"
    place.command("show", rows["task_key"].iloc[0], "--images", written, "--store", place.store)
    assert Image.open(io.BytesIO(written.read_bytes())).mode == "RGB"
    sql = "SELECT key FROM tasks WHERE kind = 'Split'"
    told = place.command("query", sql, "--store", place.store, "--format", "csv")
    key = told.text.split()[1]
    said = place.command("show", key, "--images", written, "--store", place.store)
    assert (said.code, "keeps no images" in said.flat) == (2, True)
    assert "nothing to remove" in place.command("gc", "--store", place.store).flat
    again = place.run(defenses=["none", "onehot"], **keys)
    assert "nothing to run" in again.flat
    assert f"images: {path}" in again.flat


def test_the_same_experiment_gives_the_same_tables(place, tmp_path):
    x, y = load_digits(return_X_y=True)
    path = tmp_path / "photos.npz"
    np.savez(path, x=x[:400].reshape(-1, 8, 8).astype(np.uint8), y=y[:400], sens=y[:400] % 2)
    data = {**DIGITS, "name": "photos", "path": str(path)}
    attribute = {"name": "attribute", "column": "sens", "epochs": 3}
    attacks = [INVERSION, attribute, {**attribute, "layer": "hidden"}]
    file = place.file(datasets=[data], attacks=attacks, target=TARGET, defenses=["onehot"])
    stores = [tmp_path / name for name in ("a", "b")]
    for store in stores:
        said = place.command("run", file, "--store", store, "--inline")
        assert said.code == 0, said.text
        assert "how near rebuilt records come" in said.flat
        assert "what answers tell of sens" in said.flat
    one, other = (Store(store).tables for store in stores)
    assert equal(one, other) == []
    row = other.frame("inversion").drop(columns=["current"]).to_dict("records")[0]
    names = ("inversion_error", "dataset", "task_key")
    other.write("inversion", row["task_key"], [{n: row[n] for n in names}])
    assert any(line.startswith("inversion/") for line in equal(one, other))


def planned(place, **keys):
    return make_plan(load_experiment(place.file(**keys)), None)


def test_what_is_shared_is_one_task(place):
    attacks = [INVERSION, {**INVERSION, "top_k": 1}, "gap"]
    plan = planned(
        place, datasets=[DIGITS], attacks=attacks, defenses=["none", "onehot"], seeds=[0, 1]
    )
    kinds = [cell.kind for cell in plan.cells]
    assert kinds.count("inversion") == 2 * 2 * 2
    assert kinds.count("attack") == 2 * 2
    assert kinds.count("worst") == 2
    identities = {cell.task.identity.key for cell in plan.cells if cell.kind == "inversion"}
    assert len(identities) == 2
    worst = next(cell.task for cell in plan.cells if cell.kind == "worst")
    assert {task.name for task in worst.attacks} == {"gap"}


def test_the_identity_network_trains_on_nothing_that_is_judged_or_attacked(place):
    for judge in ("members", "reference"):
        data = [{**DIGITS, "judge": judge}]
        plan = planned(place, datasets=data, attacks=[INVERSION], defenses=["none"])
        (cell,) = (cell for cell in plan.cells if cell.kind == "inversion")
        split = cell.task.answers.target.split
        dataset = datasets.load(split.data.source)
        divided = split.divide(dataset)
        rows, groups = cell.task.identity.rows.array, dataset.groups
        assert len(rows) > 20
        assert set(rows) <= set(divided.reference)
        for others in (divided.judged(judge)[0], divided.members, divided.nonmembers_fit):
            assert not set(groups[rows]) & set(groups[others])


def test_records_that_are_no_images_are_shown_to_nobody(place):
    plan = planned(place, attacks=[INVERSION])
    assert all(cell.task.identity is None for cell in plan.cells if cell.kind == "inversion")


@pytest.mark.parametrize(
    ("attack", "path", "parts"),
    [
        ("attribute", "attacks[0]", ("needs a key 'column'", "city, sens")),
        ({"name": "attribute", "column": "sense"}, "attacks[0].column", ("did you mean 'sens'",)),
        ({"name": "attribute", "column": "constant"}, "attacks[0].column", ("1 different",)),
        ({"name": "attribute", "column": "number"}, "attacks[0].column", ("600 different",)),
        ({"name": "attribute", "column": ""}, "attacks[0].column", ("must not be empty",)),
        ({"name": "gap", "column": "sens"}, "attacks[0].column", ("gap infers no attribute",)),
        ({"name": "inversion", "layer": "hidden"}, "attacks[0].layer", ("infers no attribute",)),
        (
            {"name": "attribute", "column": "sens", "fit_on": "clean"},
            "attacks[0].fit_on",
            ("attribute is fitted on what the service answers",),
        ),
        ({"name": "inversion", "fit_on": "clean"}, "attacks[0].fit_on", ("drop this key",)),
        ({"name": "inversion", "adaptive": True}, "attacks[0].adaptive", ("no adaptive form",)),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(place, visits, attack, path, parts):
    place.refused(place.run(**on_visits(visits, attack)), path, *parts)


def test_a_dataset_without_such_a_column_is_named(place):
    said = place.run(attacks=[{"name": "attribute", "column": "sens"}])
    place.refused(said, "attacks[0].column", "'synth_s' has no column 'sens'; it has none beside")


def test_too_few_records_with_a_value_are_refused(place, tmp_path):
    rng = np.random.default_rng(0)
    sens = np.full(60, "", dtype="U1")
    sens[:2] = ["a", "b"]
    path = tmp_path / "few.npz"
    np.savez(path, x=rng.random((60, 4)), y=np.arange(60) % 2, sens=sens)
    split = {"members": 20, "reference": 20, "nonmembers": 20}
    data = [{"name": "few", "path": str(path), "split": split}]
    said = place.run(datasets=data, attacks=[{"name": "attribute", "column": "sens"}])
    place.refused(said, "attacks[0].column", "two values with two records each are needed")


def test_labels_tell_attributes_apart():
    entry = AttackEntry.model_validate({"name": "attribute", "column": "sens", "width": 8})
    assert attack_label(entry) == "attribute(sens, width=8)"
    white = entry.model_copy(update={"layer": "hidden"})
    assert attack_label(white) == "attribute(sens, hidden layer, width=8)"
