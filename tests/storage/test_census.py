"""What lies in a store is found in whatever state, and removed whole."""

import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifacts import Artifacts
from storage.census import description, find_keys, keys_in, pieces, remove
from storage.tables import Tables


def put(store, task) -> str:
    text = json.dumps(task, sort_keys=True, separators=(",", ":"))
    key = sha256(text.encode()).hexdigest()
    Artifacts(store / "artifacts").put(key, text, lambda draft: draft.facts("a", {"b": 1}))
    return key


def test_pieces_are_everything_but_what_experiments_and_studies_own(tmp_path):
    key = put(tmp_path, {"kind": "K"})
    tables = Tables(tmp_path / "tables")
    tables.write("tasks", key, [{"kind": "K"}])
    tables.write("trials", key, [{"study": "s"}])
    tables.write_cells("e", [{"task_key": key}])
    (tmp_path / "artifacts" / "notes.txt").write_text("somebody's")
    (tmp_path / "artifacts" / key[:2] / "more.txt").write_text("somebody's")
    found = list(pieces(tmp_path, 60.0))
    assert [(p.what, p.table, p.key) for p in found] == [
        ("artifact", "", key),
        ("part", "tasks", key),
    ]
    for piece in found:
        files = [piece.path] if piece.path.is_file() else [*piece.path.iterdir()]
        assert piece.nbytes == sum(len(file.read_bytes()) for file in files)
        remove(piece)
        remove(piece)  # as another process may have done
    assert not list(pieces(tmp_path, 60.0))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "more.txt", "e.parquet", f"part-{key}.parquet"}


def test_a_description_is_read_from_a_damaged_artifact_but_not_if_it_is_another_task(tmp_path):
    task = {"kind": "K", "fields": {"text": "Straße", "real": 1e-12}}
    key = put(tmp_path, task)
    folder = tmp_path / "artifacts" / key[:2] / key
    (folder / "a.json").unlink()
    assert Artifacts(tmp_path / "artifacts").state(key) == "damaged"
    assert description(tmp_path, key) == task
    written = (folder / "task.json").read_text()
    (folder / "task.json").write_text(written.replace("1e-12", "1e-11"))
    assert description(tmp_path, key) is None
    (folder / "task.json").write_text("[]")
    assert description(tmp_path, key) is None
    assert description(tmp_path, "0" * 64) is None


def test_keys_are_found_by_their_first_digits_in_artifacts_and_tables(tmp_path):
    key = put(tmp_path, {"kind": "K"})
    other = "0" * 64
    Tables(tmp_path / "tables").write("failures", other, [{"kind": "K"}])
    assert find_keys(tmp_path, "") == {key, other}
    assert find_keys(tmp_path, key[:5]) == {key}
    assert find_keys(tmp_path, "0000") == {other}
    for wrong in ("*", "../", "A", "?"):
        with pytest.raises(ValueError, match="begins no task key"):
            find_keys(tmp_path, wrong)


KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)
PLAIN = st.none() | st.integers() | st.text(max_size=3)


@settings(deadline=None)
@given(st.lists(KEYS), st.dictionaries(st.sampled_from("abc"), PLAIN))
def test_inputs_are_found_however_deep(keys, rest):
    value = {"first": [{"task": key} for key in keys[::2]], **rest}
    value = {"x": [[value], {"y": [{"task": key} for key in keys[1::2]]}]}
    assert list(keys_in(value)) == keys[::2] + keys[1::2]


def test_rows_reads_only_the_parts_asked_for(tmp_path):
    tables = Tables(tmp_path)
    names = {char * 64: char for char in "abc"}
    for key, name in names.items():
        tables.write("tasks", key, [{"name": name}])
    (tmp_path / "tasks" / f"part-{'c' * 64}.parquet").write_bytes(b"damaged")
    assert tables.rows("tasks", ["a" * 64, "d" * 64])["name"].tolist() == ["a"]
    assert tables.rows("tasks", [])["name"].tolist() == []
    assert not tables.problems
