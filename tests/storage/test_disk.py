"""Disks that are full, read-only or another's: told, and nothing half written stays."""

import errno
import hashlib
import subprocess

import numpy as np
import pytest

from storage.artifacts import (
    Artifacts,
    Draft,
    StoreUnwritable,
    write_whole,
)
from storage.tables import Tables

TASK = '{"seed":1}'
KEY, OTHER = (hashlib.sha256(text).hexdigest() for text in (TASK.encode(), b"{}"))


def fill(draft: Draft) -> None:
    draft.arrays("weights", {"w": np.arange(6.0).reshape(2, 3), "b": np.array(3)})
    draft.table("answers", {"p": np.full((4, 3), 1 / 3), "name": ["a", "b", "", "é"]})
    draft.facts("metrics", {"loss": np.float64("nan"), "epochs": np.int64(3)})


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a file system is not permitted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk):
    artifacts = Artifacts(tiny_disk / "artifacts")
    noise = np.random.default_rng(0).random(400_000)
    for kind in ("arrays", "table"):
        with pytest.raises(StoreUnwritable, match="No space left on device") as caught:
            artifacts.put(
                KEY, TASK, lambda draft, kind=kind: getattr(draft, kind)("w", {"n": noise})
            )
        assert str(artifacts.root) in str(caught.value)
        assert "--store" in str(caught.value)
        assert list(artifacts.root.iterdir()) == []
    artifacts.put(KEY, TASK, fill)
    artifacts.open(KEY).verify()


def test_a_small_file_is_replaced_whole_or_not_at_all(tiny_disk):
    path = tiny_disk / "experiments" / "versions.json"
    write_whole(path, "old")
    write_whole(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    write_whole(path, b"\x89PNG")
    assert path.read_bytes() == b"\x89PNG"
    write_whole(path, "né")
    with pytest.raises(StoreUnwritable, match="No space left on device"):
        write_whole(path, "x" * 2**21)
    assert path.read_text(encoding="utf-8") == "né"
    assert list(path.parent.iterdir()) == [path]


def test_a_read_only_store_is_told_and_still_read(tiny_disk):
    artifacts = Artifacts(tiny_disk / "artifacts")
    artifacts.put(KEY, TASK, fill)
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(StoreUnwritable, match="Read-only file system"):
        artifacts.put(OTHER, "{}", fill)
    with pytest.raises(StoreUnwritable, match="Read-only file system"):
        artifacts.set_aside(KEY, "x")
    artifacts.open(KEY).verify()


def test_a_store_on_another_disk_than_its_folder_can_set_aside(tiny_disk):
    artifacts = Artifacts(tiny_disk)  # `damaged` lies outside the mount: no rename leads there
    artifacts.put(KEY, TASK, fill)
    place = artifacts.set_aside(KEY, "x")
    assert (place / "artifact" / "task.json").is_file()
    assert artifacts.state(KEY) == "absent"


def test_tables_on_a_full_and_a_read_only_disk(tiny_disk):
    tables = Tables(tiny_disk / "tables")
    tables.write("scores", KEY, [{"record": 0, "score": 0.5}])
    tables.write("scores", OTHER, [{"record": 0, "score": 0.5}])
    with pytest.raises(StoreUnwritable) as caught:
        tables.write("scores", KEY, [{"score": i**0.5} for i in range(200_000)])
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in (tables.root / "scores").iterdir()} == {
        f"part-{KEY}.parquet",
        f"part-{OTHER}.parquet",
    }
    assert tables.lacking("scores", [KEY]) == set()  # the older part is still whole
    (tables.root / "scores" / f"part-{OTHER}.parquet").write_bytes(b"rubbish")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(StoreUnwritable, match="Read-only file system"):
        tables.remove("scores", KEY)
    assert tables.lacking("scores", [KEY, OTHER]) == {OTHER}
    assert "could not be set aside (Read-only file system)" in tables.problems[0]
