"""What a hostile store can do: neither lead a command out of it, nor hold it up."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator.resume import Store

ESCAPE = "\x1b]0;mine\x07\x1b[2J\u202e"
SOON_S = 30.0  # on a busy machine


def listing(folder: Path) -> dict[str, str]:
    """Every path below a folder with its content's digest; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            whole = path.is_file() and not path.is_symlink()
            told = hashlib.sha256(path.read_bytes()).hexdigest() if whole else "no file"
            found[str(path.relative_to(folder))] = told
    return found


@pytest.fixture
def out(done: Any) -> Path:
    """A folder beside the store that is nobody's business."""
    folder: Path = done.folder / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("of another")
    (folder / "victim.txt").write_text("no newline at its end")
    return folder


def moved(name: str) -> Callable[[Path, Path], None]:
    """A folder of the store is outside, and a link in its place."""

    def make(store: Path, out: Path) -> None:
        path = next(store.glob(name))
        path.rename(out / "moved")
        path.symlink_to(out / "moved")

    return make


def linked(name: str, target: str) -> Callable[[Path, Path], None]:
    def make(store: Path, out: Path) -> None:
        (store / name).unlink(missing_ok=True)
        (store / name).symlink_to(out / target)

    return make


STORES = {
    "damaged": linked("damaged", "."),
    "lock": linked("mlflow.db.lock", "victim.txt"),
    "journal": linked("optuna.journal", "victim.txt"),
    "fanned": moved("artifacts/??"),
    "artifacts": moved("artifacts"),
    "table": moved("tables/results"),
    "experiments": moved("experiments"),
    "experiment": moved("experiments/tiny"),
    "forms": moved("experiments/tiny/forms"),
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("damaged", "lock") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in STORES
    ],
)
def test_a_store_with_links_out_of_it_is_refused(done: Any, out: Path, kind: str) -> None:
    STORES[kind](done.store, out)
    before = listing(out)
    for words in (
        ["run", done.file(), "--inline", "--set", "seeds=[1]"],
        ["gc", "--forget", "tiny", "--delete", "--damaged"],
    ):
        said = done.command(*words, "--store", done.store)
        assert said.code == 2, said.text
        assert "leads out of the store" in said.flat
    assert listing(out) == before


def test_a_store_does_not_say_by_itself_whose_copy_it_is(done: Any, out: Path) -> None:
    """A folder that was given to somebody would have it all sent to, or removed from, an URI."""
    (out / "damaged" / "x").mkdir(parents=True)
    (out / "damaged" / "x" / "file").write_text("of another")
    (done.store / "artifacts").rename(out / "artifacts")
    (done.store / "upstream.json").write_text(json.dumps({"uri": out.as_uri()}))
    before = listing(out)
    done.command("gc", "--forget", "tiny", "--delete", "--damaged", "--store", done.store)
    done.command("run", done.file(), "--inline", "--store", done.store)
    assert listing(out) == before


def link_parts(store: Path, out: Path) -> None:
    for number, part in enumerate(sorted(store.glob("tables/results/part-*.parquet"))):
        part.unlink()
        part.symlink_to(out / ("victim.txt" if number else "sub"))


def link_artifacts(store: Path, out: Path) -> None:
    (store / "artifacts" / "ab").mkdir(exist_ok=True)
    (store / "artifacts" / "ab" / f"ab{'0' * 62}").symlink_to(out)
    (store / "artifacts" / ".draft-x-1-0").symlink_to(out)


def climbing_files(store: Path, out: Path) -> None:
    victim = (out / "victim.txt").read_bytes()
    told = {"bytes": len(victim), "sha256": hashlib.sha256(victim).hexdigest()}
    for path in store.glob("artifacts/*/*/task.json"):
        content = json.loads(path.read_bytes())
        path.write_text(json.dumps({**content, "files": {"../../../../out/victim.txt": told}}))


def odd_names(store: Path, out: Path) -> None:
    for name in (ESCAPE, "two\nlines", "*", "$(touch evil)", "a@b", "<b>", "x" * 250):
        (store / "experiments" / name).mkdir()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(link_parts, marks=pytest.mark.slow),
        pytest.param(link_artifacts, marks=pytest.mark.slow),
        climbing_files,
        pytest.param(odd_names, marks=pytest.mark.slow),
    ],
)
def test_nothing_in_a_store_leads_a_command_out_of_it(done: Any, out: Path, make: Any) -> None:
    make(done.store, out)
    before, beside = listing(out), sorted(done.folder.iterdir())
    for words in (
        ["status", done.file()],
        ["run", done.file(), "--inline"],
        ["gc"],
        ["gc", "--delete", "--damaged"],
        ["query", "select * from results"],
    ):
        said = done.command(*words, "--store", done.store)
        assert said.code in (0, 2), said.text
        assert "\x1b" not in said.text
    assert listing(out) == before
    assert sorted(done.folder.iterdir()) == beside


# Ten times ten times … of one value, by aliases.
BOMB = "name: tiny\npreset: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.slow
@pytest.mark.parametrize("text", [BOMB, "name: tiny\npreset: &a [*a]\n"])
def test_a_bomb_in_a_store_costs_no_time(done: Any, text: str) -> None:
    for path in done.store.glob("experiments/tiny/**/*.yaml"):
        path.write_text(text)
    began = time.monotonic()
    said = done.run("--set", "seeds=[1]")  # so that it is compared with what the store says
    assert said.code == 0, said.text
    assert time.monotonic() - began < SOON_S


def test_a_store_moves_no_cursor(done: Any) -> None:
    tables = Store(done.store).tables
    form = tables.forms.current("tiny")
    assert form
    frame = tables.frame("cells", "tiny", form).drop(columns=["current", "form"])
    rows = [
        {k: v for k, v in row.items() if not pd.isna(v)} | {"label": f"none{ESCAPE}"}
        for row in frame.to_dict("records")
    ]
    tables.write_cells("tiny", [{**row, "seed": int(row["seed"])} for row in rows], form)
    key = rows[0]["task_key"]
    broken = {"kind": f"attack{ESCAPE}", "name": ESCAPE, "error": ESCAPE, "log_tail": ESCAPE}
    tables.write("failures", key, [{**broken, "attempts": 1}])
    for words in (
        ["show", key],
        ["status", done.file()],
        ["query", "select * from failures"],
        ["query", "select * from cells"],
        ["timeline", done.file()],
    ):
        said = done.command(*words, "--store", done.store)
        assert said.code == 0, said.text
        assert not {"\x1b", "\x07", "\u202e"} & set(said.text), words
