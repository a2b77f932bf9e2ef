"""An experiment run in several forms: all of them are kept, told apart, and never mixed."""

import json
import os

import pytest

from orchestrator._alike import Alike
from orchestrator.check import load_experiment
from orchestrator.forms import differences, form_of, kept
from orchestrator.history import rebuild
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage.queries import ask
from tasks import plugins

LONGER = {"target": {"architecture": "mlp_s", "epochs": 3, "hidden": [8]}}


def plan(place, **changes):
    return make_plan(load_experiment(place.file(**changes)), None)


def columns(found):
    """(settings, service) of each cell of a plan."""
    alike = Alike(lambda key: json.loads(found.tasks[key].description))
    return [
        (cell, *alike.columns(cell.kind, cell.task.key).values())
        for cell in found.cells
        if cell.kind != "worst"
    ]


# --- what differs in its seed only


def everything() -> dict:
    """Every defense that can be had by its name alone, and every attack."""
    leaky = {"aeppt"} & set(plugins.names("defenses"))
    defenses = [name for name in plugins.names("defenses") if name not in leaky]
    # Those for images have no place on these records, and these no attribute to infer.
    attacks = [
        name
        for name, cls in ((name, plugins.attack(name)) for name in plugins.names("attacks"))
        if "binary" in cls.KINDS and plugins.aim(cls) != "attribute"
    ]
    return {"defenses": defenses, "attacks": attacks, "adaptive": True}


def test_settings_are_the_same_for_every_seed_and_differ_for_everything_else(place):
    found = columns(plan(place, seeds=[0, 1, 5], **everything()))
    places: dict[tuple, set] = {}
    for cell, settings, service in found:
        assert len(settings) == 12
        assert len(service) == (0 if cell.kind == "check" else 12)
        what = (cell.kind, cell.label, cell.attack)
        places.setdefault(what, set()).add((settings, service))
    assert all(len(told) == 1 for told in places.values()), places
    assert len(set.union(*places.values())) == len(places)
    services = {(label, service) for (_, label, _), ((_, service),) in places.items() if label}
    assert len(services) == len({label for label, _ in services}) == len({s for _, s in services})


SIZES = {"members": 60, "reference": 60, "nonmembers": 60}
EVERY = {"check", "utility", "attack"}
DATA = {"name": "synth_s", "generator": {"rows": 300, "classes": 4, "features": 16}, "split": SIZES}


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        (LONGER, {"utility", "attack"}),
        ({"datasets": [{**DATA, "known": 0.25}]}, EVERY),
        ({"datasets": [{**DATA, "split": SIZES | {"members": 61}}]}, EVERY),
        ({"datasets": [{**DATA, "generator": {**DATA["generator"], "data_seed": 9}}]}, EVERY),
        ({"defenses": [{"name": "none", "label": "raw"}, "prototype"]}, set()),
        ({"attacks": [{"name": "gap", "fit_on": "clean", "label": "gap"}]}, {"attack"}),
        ({"seeds": [3]}, set()),
        ({"preset": "sound"}, {"utility", "attack"}),
    ],
)
def test_settings_differ_where_anything_but_the_seed_does(place, changes, others):
    before = [told for _, *told in columns(plan(place))]
    after = columns(plan(place, **changes))
    changed = {
        cell.kind for (cell, *told), was in zip(after, before, strict=True) if told[0] != was[0]
    }
    if "preset" in changes:  # it sets nothing here that was not set by name
        assert changed <= others
    else:
        assert changed == others


def test_another_version_is_another_setting(place, monkeypatch):
    before = [told for _, *told in columns(plan(place))]
    monkeypatch.setattr(plugins.attack("gap"), "VERSION", 99)
    after = columns(plan(place))
    changed = {cell.kind for (cell, *told), was in zip(after, before, strict=True) if told != was}
    assert changed == {"attack"}


def test_a_form_is_named_by_its_cells_whatever_their_spelling(place):
    form = form_of(plan(place, defenses=["none", "prototype"]))
    assert form_of(plan(place, defenses=[{"name": "prototype"}, "none"])) == form
    assert form_of(plan(place, description="in other words")) == form
    for changes in ({"seeds": [1]}, {"attacks": [{"name": "gap", "label": "g"}]}, LONGER):
        assert form_of(plan(place, **changes)) != form


def test_keys_that_came_with_a_version_are_no_difference(place):
    now = load_experiment(place.file()).resolved()
    then = json.loads(json.dumps(now).replace('"grid": {}', '"later": null'))
    assert then != now
    assert differences(then, now | {"new": None}) == []


def test_differences_name_what_a_person_set(place):
    def told(was, now):
        both = (load_experiment(place.file(**changes)).resolved() for changes in (was, now))
        return differences(*both)

    assert told({}, {}) == told({"description": "a"}, {"description": "b"}) == []
    assert told({"seeds": [0, 1]}, {"seeds": [7]}) == ["seeds=[0, 1]"]
    assert told({}, LONGER) == ["target.epochs=2"]
    assert told({"target": "mlp_s"}, {}) == ["no target.epochs", "no target.hidden"]
    assert told({"defenses": ["none", "onehot"]}, {"defenses": ["none", "l2"]}) == [
        "defenses with onehot",
        "defenses without l2",
    ]
    noisy = [{"name": "random_noise", "sigma": s} for s in (0.1, 0.2)]
    assert told({"defenses": noisy[:1]}, {"defenses": noisy[1:]}) == ["another random_noise"]


# --- runs


def asked(place, sql):
    return [tuple(row.values()) for row in ask(Store(place.store).tables, sql).to_pylist()]


MEANS = "SELECT label, num_seeds, current FROM mean_results ORDER BY ALL"


def test_seeds_run_one_after_the_other_are_one_mean_and_nothing_is_forgotten(done):
    assert done.run(seeds=[0, 1]).code == 0
    said = done.run(seeds=[7])
    assert said.code == 0
    assert "10 earlier cells of tiny stay in the store" in said.flat
    assert "had seeds=[0, 1]); `sfumato gc --forget tiny@earlier`" in said.flat
    assert "1 seed, ± 95 % over records" in said.flat  # the table is that of what was run
    assert asked(done, MEANS) == [("none", 3, True), ("prototype", 3, True)]
    assert asked(done, "SELECT label, num_seeds FROM mean_utility") == [
        ("none", 3),
        ("prototype", 3),
    ]
    told, _ = rebuild(Store(done.store), None)
    assert (told["tiny"].kept, told["tiny"].added, told["tiny"].removed) == (6, 0, 0)
    assert [len(form.tasks) for form in kept(Store(done.store)) if form.current] == [12]
    # The same again adds nothing and says nothing.
    files = {path for path in done.store.rglob("*") if path.is_file()}
    again = done.run(seeds=[7])
    assert "nothing to run" in again.flat
    assert "earlier" not in again.flat
    assert {path for path in done.store.rglob("*") if path.is_file()} == files


def test_more_seeds_at_once_leave_nothing_behind_that_is_worth_a_word(done):
    assert "earlier" not in done.run(seeds=[0, 1]).flat
    assert asked(done, MEANS) == [("none", 2, True), ("prototype", 2, True)]
    # A worst case is over its seeds, and only that of the last form is current.
    worst = "SELECT label, num_seeds, current FROM worst ORDER BY ALL"
    assert asked(done, worst) == [
        (label, seeds, seeds == 2) for label in ("none", "prototype") for seeds in (1, 2)
    ]


def test_other_settings_under_the_same_name_are_never_averaged(done):
    said = done.run(**LONGER)
    assert "had target.epochs=2)" in said.flat
    assert asked(done, MEANS) == [
        (label, 1, now) for label in ("none", "prototype") for now in (False, True)
    ]
    assert len(asked(done, "SELECT * FROM tradeoff")) == 4
    mixing = done.command("query", "SELECT avg(auc) FROM results", "--store", done.store)
    assert "warning: some rows belong to settings" in mixing.flat
    apart = done.command(
        "query", "SELECT avg(auc) FROM results WHERE current", "--store", done.store
    )
    assert "warning" not in apart.flat
    # Going back makes the first form the current one again.
    forms = {form.current: form for form in kept(Store(done.store))}
    back = done.run_file(str(forms[False].file))
    assert "nothing to run" in back.flat
    assert "had target.epochs=3)" in back.flat
    assert {f.name: f.current for f in kept(Store(done.store))} == {
        forms[False].name: True,
        forms[True].name: False,
    }


def test_a_defense_less_keeps_its_cells(done):
    assert done.run(defenses=["none"]).code == 0
    assert asked(done, MEANS) == [("none", 1, True), ("prototype", 1, False)]
    status = done.command("status", done.file(defenses=["none"]), "--store", done.store)
    assert "prototype" not in status.flat


def test_a_store_made_before_forms_were_is_read_and_adopted(done, before_forms):
    before_forms(done.store, "tiny")
    assert asked(done, MEANS) == [("none", 1, True), ("prototype", 1, True)]
    assert [(f.name, f.current, f.tasks) for f in kept(Store(done.store))] == [("", True, None)]
    said = done.run(seeds=[7])
    assert "5 earlier cells of tiny stay in the store" in said.flat
    assert "had seeds=[0])" in said.flat
    # What tells its settings is in its artifacts, so that its seed counts too.
    assert asked(done, MEANS) == [("none", 2, True), ("prototype", 2, True)]
    now, then = kept(Store(done.store))
    assert (now.current, then.current, then.settings()["seeds"]) == (True, False, [0])
    assert then.name == form_of(plan(done))
    assert not (done.store / "tables" / "cells" / "tiny.parquet").exists()


def test_the_same_form_of_a_store_made_before_forms_is_no_other(done, before_forms):
    before_forms(done.store, "tiny")
    said = done.run()
    assert "nothing to run" in said.flat
    assert "earlier" not in said.flat
    (form,) = kept(Store(done.store))
    assert (form.current, len(form.tasks)) == (True, len(done.artifacts()))


def test_a_store_of_which_nothing_tells_settings_is_adopted_too(done, before_forms):
    before_forms(done.store, "tiny")
    for folder in done.artifacts().values():
        (folder / "task.json").write_text("{}")
    assert done.run(seeds=[7]).code == 0
    assert asked(done, MEANS) == [
        (label, 1, now) for label in ("none", "prototype") for now in (False, True)
    ]


@pytest.mark.parametrize("old", [False, True])
def test_what_cannot_be_written_can_still_be_shown(done, before_forms, permissions_that_count, old):
    """Also a store made before forms were kept; but not cells that it does not have."""
    if old:
        before_forms(done.store, "tiny")
    folders = [done.store / name for name in ("tables/cells", "experiments/tiny")]
    folders += [] if old else [done.store / "experiments/tiny/forms"]
    for folder in folders:
        folder.chmod(0o500)
    try:
        with permissions_that_count():
            shown, refused = done.run(), done.run(defenses=["none"], attacks=["gap"])
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (shown.code, "cannot write" in shown.flat, "prototype" in shown.flat) == (0, True, True)
    assert (refused.code, "cannot write" in refused.flat) == (2, True)


# --- a journal that cannot be written


def test_a_journal_on_a_full_disk_stops_the_run_in_one_line(place):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    said = place.run("--journal", "/dev/full")
    assert said.code == 1
    (line,) = [line for line in said.text.splitlines() if line.startswith("stopped:")]
    assert "cannot write the journal /dev/full: No space left on device" in line
    assert "--journal" in line
    assert said.text.count("No space left") == 1
    assert not (place.store / "tables" / "failures").exists()
    assert place.run().code == 0


def test_a_journal_that_cannot_be_opened_is_bad_input(place):
    for path in (place.folder, place.folder / "nowhere" / "journal.txt"):
        said = place.run("--journal", path)
        place.refused(said, f"--journal {path}:", "name a file that can be written to")
