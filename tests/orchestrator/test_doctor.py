"""`doctor` finds what is broken, says what to do, and never breaks itself."""

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from orchestrator._finding import probe, size
from orchestrator.doctor import CHECKS, Finding, Place, examine, table

MACHINE = ("Python", "packages", "torch", "faiss", "CPU", "memory", "/dev/shm", "Ray", "Ray token")


def doctor(place, *args):
    return place.command("doctor", "--quick", "--store", place.store, *args)


def findings(place, *names, **options) -> dict[str, Finding]:
    """What some checks find."""
    where = Place(place.store, quick=True, **options)
    return {f.what: f for f in examine(where, {name: CHECKS[name] for name in names})}


def store_of(place, **options) -> dict[str, Finding]:
    return findings(place, *(CHECKS.keys() - set(MACHINE)), **options)


def test_a_sound_place_has_no_failure(done, monkeypatch):
    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    said = doctor(done)
    assert said.code == 0, said.text
    assert "FAIL" not in said.text
    assert f"{len(done.artifacts())} artifacts whole" in said.flat
    for what in ("torch", "faiss", "ray", "not started (--quick)", "no folder named"):
        assert what in said.flat


def test_looking_changes_nothing(done):
    before = {p: p.stat().st_mtime_ns for p in done.store.rglob("*") if p.is_file()}
    store_of(done, deep=True)
    after = {p: p.stat().st_mtime_ns for p in done.store.rglob("*") if p.is_file()}
    assert after == before


def test_a_store_that_is_not_there_is_not_made(place):
    found = store_of(place)
    assert found["store"].state == "note"
    assert "the first run makes it" in found["store"].remedy
    assert all(finding.state != "FAIL" for finding in found.values())
    assert not place.store.exists()


def test_a_folder_that_is_no_store_is_called_none(place):
    place.store.mkdir()
    assert store_of(place)["store"].found.endswith("is empty")
    (place.store / "thesis.tex").write_text("precious")
    found = store_of(place)
    assert found["store"].state == "FAIL"
    assert "is no store" in found["store"].found
    assert not found.keys() & {"artifacts", "tables", "MLflow"}
    assert doctor(place).code == 1


def test_deleted_runs_of_the_history_do_not_count(done):
    assert store_of(done)["MLflow"].found == "mlflow.db holds 3 runs"  # 2 cells, their experiment
    client = MlflowClient(f"sqlite:///{done.store}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    client.delete_run(client.search_runs(ids)[0].info.run_id)
    assert store_of(done)["MLflow"].found == "mlflow.db holds 2 runs"


def test_a_store_that_cannot_be_written_fails(done, permissions_that_count):
    done.store.chmod(0o500)
    try:
        with permissions_that_count():
            found = store_of(done)["store"]
    finally:
        done.store.chmod(0o700)
    assert found.state == "FAIL"
    assert "cannot be written to" in found.found


def payload(done):
    """A payload file and the key of its artifact."""
    key, folder = sorted(done.artifacts().items())[0]
    return key, next(path for path in sorted(folder.iterdir()) if path.name != "task.json")


def test_a_short_file_is_found_by_its_size_and_nothing_is_moved(done):
    key, path = payload(done)
    path.write_bytes(path.read_bytes()[:-1])
    found = store_of(done)["artifacts"]
    assert found.state == "FAIL"
    assert f"1 damaged, the first {key[:12]}: {path.name} has" in found.found
    assert path.exists()
    assert doctor(done).code == 1


def test_an_altered_file_is_found_by_deep_set_aside_and_computed_again(done):
    key, path = payload(done)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert store_of(done)["artifacts"].state == "ok"
    found = store_of(done, deep=True)
    assert found["artifacts"].state == "FAIL"
    assert f"the first {key[:12]}: {path.name} does not match" in found["artifacts"].found
    assert key not in done.artifacts()
    assert store_of(done)["set aside"].state == "note"
    assert done.run().code == 0
    assert store_of(done, deep=True)["artifacts"].state == "ok"


def test_a_damaged_part_is_found_by_deep(done):
    (part, *_) = sorted((done.store / "tables" / "results").glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[8] ^= 255
    part.write_bytes(data)
    assert store_of(done)["tables"].state == "ok"
    found = store_of(done, deep=True)["tables"]
    assert found.state == "FAIL"
    assert part.name in found.found
    assert store_of(done, deep=True)["tables"].state == "ok"  # set aside, as by any reading


def test_an_unreadable_history_fails_with_the_way_back(done):
    (done.store / "mlflow.db").write_bytes(b"no database at all" * 100)
    found = store_of(done)["MLflow"]
    assert found.state == "FAIL"
    assert "history --rebuild" in found.remedy


def test_data_files_are_opened(done, tmp_path):
    folder = tmp_path / "data"
    assert store_of(done, data_dir=folder)["data"].state == "FAIL"
    folder.mkdir()
    assert "none of the known sets" in store_of(done, data_dir=folder)["data"].found
    (folder / "location30.parquet").write_text("<html>404</html>")
    found = store_of(done, data_dir=folder)
    assert found["data location30"].state == "FAIL"
    assert "is no parquet file" in found["data location30"].found


def test_secrets_of_the_environment_are_not_shown(done, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:geheim@server/path")
    found = findings(done, "Ray token", "MLflow server")
    assert "RAY_AUTH_TOKEN" in found["Ray token"].found
    assert "--tracking-uri" in found["MLflow server"].remedy
    assert "geheim" not in str(found)


def test_token_mode_without_a_token_says_where_it_goes(done, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    found = findings(done, "Ray token")["Ray token"]
    assert found.state == "note"
    assert "ray get-auth-token" in found.remedy


def test_a_check_that_breaks_is_a_finding_and_stops_no_other(place):
    def breaks(where: Place) -> Iterator[Finding]:
        yield Finding("first", "ok", "seen")
        raise KeyError("a\nb")

    def works(where: Place) -> Iterator[Finding]:
        yield Finding("second", "ok", "seen")

    found = list(examine(Place(place.store), {"breaks": breaks, "works": works}))
    assert [(f.what, f.state) for f in found] == [
        ("first", "ok"),
        ("breaks", "FAIL"),
        ("second", "ok"),
    ]
    assert "the check broke: KeyError" in found[1].found
    assert table(found).row_count == 3


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("import sys; sys.exit(3)", "exit 3"),
        ("while True: pass", "no answer in 1 s"),
    ],
)
def test_a_package_that_takes_its_process_along_is_told_in_a_line(code, says):
    with pytest.raises(RuntimeError, match=says) as caught:
        probe(code, 1.0 if "while" in code else 60.0)
    assert "\n" not in str(caught.value)


def test_a_file_named_as_a_package_where_we_are_called_does_not_pass_for_it(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not torch')")
    monkeypatch.chdir(tmp_path)
    assert probe("import json, torch; print(json.dumps({'v': torch.__version__}))", 60.0)["v"]


def test_sizes_are_spelled():
    assert [size(n) for n in (0, 1023, 1536, 5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_is_really_started(place):
    where = Place(place.store, quick=False)
    (found,) = examine(where, {"Ray": CHECKS["Ray"]})
    assert found.state == "ok", found
    assert "a worker was ready after" in found.found
