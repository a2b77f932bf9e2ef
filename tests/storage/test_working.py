"""The local folder of a store at an URI: what is sent, what is fetched, and what is never lost."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import census, working
from storage._copy import Copy
from storage._objects import Stat
from storage.artifacts import Artifacts, Draft, StoreUnwritable
from storage.remote import ObjectStore
from storage.working import Pusher, upstream_of, working_copy

TASK = '{"seed":1}'
KEY = hashlib.sha256(TASK.encode()).hexdigest()
PART = "tables/results/part-a.parquet"


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3").new_uri())
    return f"file://{tmp_path}/remote"


Copies = Callable[[str], Path]


@pytest.fixture
def copy(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copies:
    """`copy("a")`: the working copy of a machine called a, in step with the URI."""

    def of(machine: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        return working_copy(uri)

    return of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # and back in the end


def on(root: Path) -> Path:
    """Be on the machine whose copy this is."""
    os.environ["XDG_CACHE_HOME"] = str(root.parents[2])
    return root


def push(root: Path) -> list[str]:
    return working.push(on(root))


def pull(root: Path, *, whole: bool = False) -> list[str]:
    return working.pull(on(root), whole=whole)


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(content)
    if path.stat().st_mtime_ns == before:  # within one tick of the clock
        os.utime(path, ns=(before, before + 1_000_000))


def files_of(root: Path) -> dict[str, str]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    named = {path.relative_to(root).as_posix(): path for path in paths}
    ours = (".synced", "upstream.json")
    return {name: path.read_text() for name, path in named.items() if not name.startswith(ours)}


def objects_of(uri: str) -> dict[str, str]:
    objects = ObjectStore(uri).objects
    names = [name for top in ("tables", "experiments", "logs") for name in objects.listing(top)]
    return {name: objects.read(name).decode() for name in names}


def put(root: Path) -> None:
    def fill(draft: Draft) -> None:
        draft.facts("metrics", {"loss": 0.5})

    Artifacts(root / "artifacts", upstream_of(root)).put(KEY, TASK, fill)


def test_a_copy_says_whose_it_is(copy: Copies, uri: str, tmp_path: Path) -> None:
    root = copy("a")
    assert (
        root
        == tmp_path / "a" / "sfumato" / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    )
    said = upstream_of(root)
    assert said is not None
    assert said.uri == uri
    assert upstream_of(tmp_path) is None
    assert copy("a") == root
    (root / "upstream.json").write_text(json.dumps({"uri": uri + "x"}))
    with pytest.raises(ValueError, match=r"calls its folder a copy of .*x, whose copy .* would"):
        copy("a")
    (root / "upstream.json").write_text("{")
    with pytest.raises(ValueError, match="does not say whose copy"):
        upstream_of(root)


def test_what_one_writes_another_reads(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    write(a, "experiments/x/forms/f.yaml", "seeds: [0]")
    write(a, "logs/1.txt", "said")
    for own in ("mlflow.db", "experiments/x/tracked.jsonl", "tables/results/.draft-x"):
        write(a, own, "mine")
    assert push(a) == []
    assert set(objects_of(uri)) == {PART, "experiments/x/forms/f.yaml", "logs/1.txt"}
    b = copy("b")
    assert files_of(b) == objects_of(uri)
    write(b, PART, "other rows")
    push(b)
    assert files_of(copy("a"))[PART] == "other rows"


def test_only_what_changed_travels(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    push(a)
    there = ObjectStore(uri).objects.listing("tables")
    push(a)
    pull(a)
    assert ObjectStore(uri).objects.listing("tables") == there
    before = (a / PART).stat().st_mtime_ns
    assert (copy("a") / PART).stat().st_mtime_ns == before


def test_what_is_removed_here_is_removed_there_and_in_other_copies(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    write(a, "tables/failures/part-a.parquet", "an error")
    push(a)
    b = copy("b")
    (a / "tables/failures/part-a.parquet").unlink()
    push(a)
    assert set(objects_of(uri)) == {PART}
    assert set(files_of(copy("b"))) == {PART}
    assert b.is_dir()


def test_what_changed_there_is_not_removed_by_who_removed_it_here(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    push(a)
    write(copy("b"), PART, "later rows")
    push(copy("b"))
    (a / PART).unlink()
    push(a)
    assert objects_of(uri) == {PART: "later rows"}


def test_what_a_killed_driver_had_not_sent_is_sent_and_never_removed(
    copy: Copies, uri: str
) -> None:
    a = copy("a")
    write(a, PART, "rows")
    push(a)
    write(a, "tables/results/part-b.parquet", "unsent")
    write(a, PART, "rows again")
    assert copy("a") == a
    assert files_of(a) == {PART: "rows again", "tables/results/part-b.parquet": "unsent"}
    push(a)
    assert objects_of(uri) == files_of(a)


def test_a_lost_index_removes_nothing(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    push(a)
    (a / ".synced.json").write_text("{")
    write(a, "tables/results/part-b.parquet", "unsent")
    push(copy("a"))
    assert (
        objects_of(uri) == files_of(a) == {PART: "rows", "tables/results/part-b.parquet": "unsent"}
    )


def test_a_folder_removed_by_hand_is_fetched_again(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    push(a)
    shutil.rmtree(a / "tables")
    push(a)
    assert objects_of(uri) == {PART: "rows"}
    assert files_of(copy("a")) == {PART: "rows"}


def test_a_study_that_two_drivers_share_is_not_overwritten(copy: Copies, uri: str) -> None:
    objects = ObjectStore(uri).objects
    a = copy("a")
    write(a, "optuna.journal", "1\n")
    assert push(a) == []
    b = copy("b")
    write(b, "optuna.journal", "1\n2\n")
    assert push(b) == []
    write(a, "optuna.journal", "1\n3\n")
    told = push(a)
    assert len(told) == 1
    assert "--study-uri" in told[0]
    assert "two drivers share" in told[0]
    assert objects.read("optuna.journal") == b"1\n2\n"
    copy("a")
    assert (a / "optuna.journal").read_text() == "1\n3\n"


def test_a_study_goes_on_from_another_machine(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, "optuna.journal", "1\n")
    push(a)
    b = copy("b")
    write(b, "optuna.journal", "1\n2\n")
    push(b)
    assert (copy("a") / "optuna.journal").read_text() == "1\n2\n"
    (a / "optuna.journal").unlink()
    push(a)
    assert ObjectStore(uri).objects.read("optuna.journal") == b"1\n2\n"


class Hostile:
    """Objects of a bucket in which somebody else writes too."""

    uri = "s3://bucket/store"

    def listing(self, folder: str) -> dict[str, Stat]:
        names = ("tables/../../escaped", "tables/a/../../../escaped", "tables//x", "tables/sound")
        return dict.fromkeys(names, Stat(1, 1)) if folder == "tables" else {}

    def stat(self, name: str) -> None: ...

    def read(self, name: str) -> bytes:
        return b"x"


def test_names_that_lead_out_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "stores" / "copy"
    root.mkdir(parents=True)
    with Copy.locked(root, Hostile()) as copy:
        copy.pull()
    assert set(files_of(root)) == {"tables/sound"}
    assert not list(tmp_path.rglob("escaped"))


def test_whole_copies_have_every_artifact(copy: Copies) -> None:
    put(copy("a"))
    b = copy("b")
    assert census.is_store(b)
    assert list(Artifacts(b / "artifacts").keys()) == []
    assert census.description(b, KEY) == {"seed": 1}
    assert pull(b, whole=True) == []
    assert list(Artifacts(b / "artifacts").keys()) == [KEY]


def test_pieces_of_the_uri_are_found_and_removed(copy: Copies, uri: str) -> None:
    put(copy("a"))
    store, b = ObjectStore(uri), copy("b")
    store.objects.write(f"artifacts/ab/{'ab' * 32}/0123-metrics.json", b"half")
    store.objects.write("damaged/x-0/reason.txt", b"bad\n")
    found = list(census.pieces(b, drafts_older_than_s=3600))
    assert [(piece.what, piece.key) for piece in found] == [("artifact", KEY), ("damaged", "")]
    found = list(census.pieces(b, drafts_older_than_s=-3600))
    assert [piece.what for piece in found] == ["artifact", "draft", "damaged"]
    assert all(piece.nbytes > 0 for piece in found)
    for piece in found:
        census.remove(piece, store)
    assert [*store.objects.listing("artifacts"), *store.objects.listing("damaged")] == []


def test_a_pusher_sends_meanwhile_and_at_the_end(copy: Copies, uri: str) -> None:
    a = copy("a")
    write(a, PART, "rows")
    pusher = Pusher(a, every_s=0.01)
    until = time.monotonic() + 30
    while PART not in objects_of(uri):
        assert time.monotonic() < until
    write(a, "tables/results/part-b.parquet", "last")
    assert pusher.close() == []
    assert objects_of(uri) == files_of(a)


def test_a_pusher_tells_what_it_could_not_send(s3: Any, tmp_path: Path) -> None:
    uri = s3.uri("nobody")
    root = tmp_path / "sfumato" / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    write(root, "upstream.json", json.dumps({"uri": uri}))
    write(root, PART, "rows")
    told = Pusher(root).close()
    assert len(told) == 1
    assert "bucket" in told[0]
    assert str(root) in told[0]
    with pytest.raises(StoreUnwritable):
        push(root)


def test_a_store_of_its_own_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, PART, "rows")
    assert (push(tmp_path), pull(tmp_path), Pusher(tmp_path).close()) == ([], [], [])
    assert files_of(tmp_path) == {PART: "rows"}
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
