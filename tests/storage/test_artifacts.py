"""Artifacts: present means complete, read means verified."""

import errno
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.artifacts import (
    Artifact,
    ArtifactDamaged,
    ArtifactMissing,
    Artifacts,
    Draft,
    StoreUnwritable,
)

TASK = '{"seed":1}'
KEY = hashlib.sha256(TASK.encode()).hexdigest()
FILES = ("task.json", "weights.safetensors", "answers.parquet", "metrics.json")


def fill(draft: Draft) -> None:
    draft.arrays("weights", {"w": np.arange(6.0).reshape(2, 3), "b": np.array(3)})
    draft.table("answers", {"p": np.full((4, 3), 1 / 3), "name": ["a", "b", "", "é"]})
    draft.facts("metrics", {"loss": np.float64("nan"), "epochs": np.int64(3)})


def read_all(artifact: Artifact) -> None:
    artifact.arrays("weights")
    artifact.table("answers")
    artifact.facts("metrics")


def folder_of(artifacts: Artifacts, key: str = KEY) -> Path:
    return artifacts.root / key[:2] / key


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "store" / "artifacts")


@pytest.fixture(scope="module")
def put_once(tmp_path_factory):
    artifacts = Artifacts(tmp_path_factory.mktemp("once") / "artifacts")
    artifacts.put(KEY, TASK, fill)
    return artifacts


@pytest.fixture
def filled(artifacts, put_once):
    """A copy: putting waits for the disk some ten times."""
    shutil.copytree(put_once.root, artifacts.root)
    return artifacts


def test_what_was_put_comes_back_whole(filled):
    artifact = filled.open(KEY)
    assert KEY in filled
    assert filled.state(KEY) == "complete"
    assert list(filled.keys()) == [KEY]
    assert artifact.description == {"seed": 1}
    assert artifact.files == ("answers.parquet", "metrics.json", "weights.safetensors")
    folder = folder_of(filled)
    assert artifact.nbytes == sum((folder / name).stat().st_size for name in artifact.files)
    assert artifact.facts("metrics") == {"loss": None, "epochs": 3}
    answers = artifact.table("answers")
    assert answers["name"].tolist() == ["a", "b", "", "é"]
    assert answers["p"].tolist() == [[1 / 3] * 3] * 4
    weights = artifact.arrays("weights")
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights["b"].shape == ()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_image_comes_back_as_a_png_of_the_same_pixels(artifacts, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    artifacts.put(KEY, TASK, lambda draft: draft.image("faces", pixels))
    artifact = artifacts.open(KEY)
    assert artifact.files == ("faces.png",)
    with Image.open(io.BytesIO(artifact.image("faces"))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    with pytest.raises(ArtifactMissing, match="holds no other"):
        artifact.image("other")
    path = folder_of(artifacts) / "faces.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactDamaged, match="does not match its checksum"):
        artifact.image("faces")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(artifacts, pixels):
    with pytest.raises(ValueError, match="faces: an image is uint8"):
        artifacts.put(KEY, TASK, lambda draft: draft.image("faces", pixels))
    assert KEY not in artifacts


def test_facts_are_one_canonical_text(artifacts):
    artifacts.put(KEY, TASK, lambda draft: draft.facts("f", {"b": (np.float32(0.5),), "a": True}))
    assert (folder_of(artifacts) / "f.json").read_text() == '{"a":true,"b":[0.5]}'


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "delete", "longer", "swap"])
def test_a_damaged_file_is_reported_and_never_trusted(filled, name, fault):
    path = folder_of(filled) / name
    data = path.read_bytes()
    if fault == "flip":
        path.write_bytes(
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
        )
    elif fault == "truncate":
        path.write_bytes(data[:-1])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "delete":
        path.unlink()
    elif fault == "longer":
        path.write_bytes(data + b"x")
    else:
        path.write_bytes(bytes(len(data)))
    with pytest.raises(ArtifactDamaged) as caught:
        read_all(filled.open(KEY))
    assert caught.value.damaged_key == KEY
    assert str(caught.value).endswith("A run that needs it computes it again.")
    if name != "task.json":
        assert name in str(caught.value)
    if fault in ("truncate", "empty", "delete", "longer"):
        assert KEY not in filled
        assert filled.state(KEY) == "damaged"
        assert list(filled.keys()) == []


def test_every_flipped_bit_of_every_file_is_noticed(filled):
    for name in FILES:
        path = folder_of(filled) / name
        data = path.read_bytes()
        for position in range(0, len(data), 7):
            path.write_bytes(
                data[:position]
                + bytes([data[position] ^ (1 << position % 8)])
                + data[position + 1 :]
            )
            with pytest.raises(ArtifactDamaged):
                filled.open(KEY).verify()
        path.write_bytes(data)
    filled.open(KEY).verify()


@pytest.mark.parametrize("name", FILES[1:])
def test_content_that_cannot_be_parsed_is_damage_even_if_its_checksum_is_right(filled, name):
    folder = folder_of(filled)
    content = json.loads((folder / "task.json").read_text())
    (folder / name).write_bytes(b"rubbish")
    content["files"][name] = {"bytes": 7, "sha256": hashlib.sha256(b"rubbish").hexdigest()}
    (folder / "task.json").write_text(json.dumps(content))
    stem, kind = name.split(".")
    artifact = filled.open(KEY)
    read = {"safetensors": artifact.arrays, "parquet": artifact.table, "json": artifact.facts}
    with pytest.raises(ArtifactDamaged, match=name):
        read[kind](stem)


def test_a_description_that_is_not_the_keys_is_refused(artifacts):
    with pytest.raises(ValueError, match="is not the SHA-256 of its description"):
        artifacts.put(KEY, '{"seed":2}', fill)
    assert not artifacts.root.exists()


def test_another_keys_folder_is_not_mistaken_for_this_one(filled):
    other = "0" * 64
    folder_of(filled, other).parent.mkdir()
    folder_of(filled).rename(folder_of(filled, other))
    assert filled.state(other) == "damaged"
    assert filled.state(KEY) == "absent"


@pytest.mark.parametrize("listed", ["../../secret", "/etc/passwd", ".hidden", "a/b", "a\n"])
def test_a_task_file_cannot_point_outside_its_folder(filled, listed):
    path = folder_of(filled) / "task.json"
    content = json.loads(path.read_text())
    content["files"][listed] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactDamaged, match=r"task\.json"):
        filled.open(KEY)


@pytest.mark.parametrize("key", ["", "..", "../" * 21 + "a", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_no_key_never_becomes_a_path(artifacts, key):
    for use in (
        lambda: artifacts.put(key, "{}", fill),
        lambda: artifacts.open(key),
        lambda: artifacts.state(key),
        lambda: key in artifacts,
        lambda: artifacts.set_aside(key, "x"),
    ):
        with pytest.raises(ValueError, match="not a task key"):
            use()
    assert not artifacts.root.parent.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "Weights", "a\n", ".hidden", "a b"])
@pytest.mark.parametrize("kind", ["arrays", "table", "facts"])
def test_what_is_no_name_never_becomes_a_path(artifacts, name, kind):
    payload = {"x": np.zeros(1)}
    with pytest.raises(ValueError, match="cannot name a file"):
        artifacts.put(KEY, TASK, lambda draft: getattr(draft, kind)(name, payload))
    assert list(artifacts.root.iterdir()) == []


def test_task_json_and_names_already_used_are_refused(artifacts):
    with pytest.raises(ValueError, match=r"task\.json is already part"):
        artifacts.put(KEY, TASK, lambda draft: draft.facts("task", {}))

    def twice(draft: Draft) -> None:
        draft.facts("a", {})
        draft.facts("a", {})

    with pytest.raises(ValueError, match=r"a\.json is already part"):
        artifacts.put(KEY, TASK, twice)


def test_missing_things_are_told_apart_from_damage(filled):
    with pytest.raises(ArtifactMissing, match="0" * 64) as caught:
        filled.open("0" * 64)
    assert caught.value.damaged_key == "0" * 64
    with pytest.raises(ArtifactMissing, match=r"no nope\.parquet; it holds answers"):
        filled.open(KEY).table("nope")


def test_a_failing_write_leaves_nothing(artifacts):
    def fail(draft: Draft) -> None:
        fill(draft)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        artifacts.put(KEY, TASK, fail)
    assert list(artifacts.root.iterdir()) == []


def test_an_error_of_the_writer_is_not_blamed_on_the_store(artifacts):
    def fail(_: Draft) -> None:
        raise PermissionError(errno.EACCES, "the data file")

    with pytest.raises(PermissionError, match="the data file") as caught:
        artifacts.put(KEY, TASK, fail)
    assert not isinstance(caught.value, StoreUnwritable)


def test_the_first_copy_stays(filled):
    filled.put(KEY, TASK, lambda draft: draft.facts("other", {}))
    assert filled.open(KEY).files == ("answers.parquet", "metrics.json", "weights.safetensors")
    assert not list(filled.root.glob(".draft-*"))


@pytest.mark.parametrize("fault", ["flip", "empty folder", "file"])
def test_putting_over_a_damaged_copy_replaces_it(filled, fault):
    folder = folder_of(filled)
    if fault == "flip":  # same size, so only its checksum tells
        (folder / "metrics.json").write_bytes(bytes((folder / "metrics.json").stat().st_size))
    else:
        folder.rename(filled.root / "elsewhere")
        folder.mkdir() if fault == "empty folder" else folder.write_text("x")
    filled.put(KEY, TASK, fill)
    filled.open(KEY).verify()
    aside = list((filled.root.parent / "damaged").glob("*"))
    assert len(aside) == (fault != "empty folder")  # rename(2) replaces an empty folder itself


def test_setting_aside_keeps_every_copy_and_its_reason(filled):
    first = filled.set_aside(KEY, "checksum")
    assert first == filled.root.parent / "damaged" / f"{KEY}-0"
    assert (first / "reason.txt").read_text() == "checksum\n"
    assert (first / "artifact" / "task.json").is_file()
    assert filled.set_aside(KEY, "again") is None
    filled.put(KEY, TASK, fill)
    assert filled.set_aside(KEY, "again").name == f"{KEY}-1"
    assert filled.state(KEY) == "absent"


@pytest.mark.parametrize(
    "error",
    [
        ArtifactDamaged(KEY, "a.json", "is missing"),
        ArtifactMissing(KEY, "no artifact"),
        StoreUnwritable(errno.ENOSPC, "cannot write to the store at /x"),
    ],
)
def test_errors_survive_the_way_between_processes(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


CHILD = """
import os, signal, sys
import numpy as np
from pathlib import Path
from storage.artifacts import Artifacts

def write(draft):
    draft.arrays("w", {"a": np.full(1000, float(sys.argv[3]))})
    print("half", flush=True)
    if sys.argv[4] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
    draft.facts("f", {"who": sys.argv[3]})

Artifacts(Path(sys.argv[1])).put(sys.argv[2], '{"seed":1}', write)
"""


def child(artifacts: Artifacts, who: str, end: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(artifacts.root), KEY, who, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_writer_killed_halfway_leaves_no_visible_artifact(artifacts):
    with child(artifacts, "0", "die") as process:
        assert process.wait() == -9
    assert artifacts.state(KEY) == "absent"
    assert list(artifacts.keys()) == []
    assert len(list(artifacts.root.glob(".draft-*"))) == 1
    assert artifacts.drop_stale_drafts(older_than_s=3600) == 1
    assert list(artifacts.root.iterdir()) == []
    artifacts.put(KEY, TASK, fill)
    assert KEY in artifacts


def test_a_living_writers_draft_stays_and_another_machines_until_it_is_old(artifacts):
    with child(artifacts, "0", "live") as process:
        assert process.stdout.readline() == "half\n"
        assert artifacts.drop_stale_drafts(older_than_s=3600) == 0
        (draft,) = artifacts.root.glob(".draft-*")
        draft.rename(elsewhere := draft.with_name(draft.name.replace(".draft-", ".draft-x")))
        process.kill()
    elsewhere.with_suffix(".old-named").touch()
    assert artifacts.drop_stale_drafts(older_than_s=3600) == 0
    assert artifacts.drop_stale_drafts(older_than_s=-1) == 2
    assert list(artifacts.root.iterdir()) == []


def test_two_writers_at_once_leave_one_whole_copy(artifacts):
    with child(artifacts, "0", "live") as one, child(artifacts, "1", "live") as two:
        for process in (one, two):  # both are halfway before either may go on
            assert process.stdout.readline() == "half\n"
        for process in (one, two):
            process.stdin.write("\n")
            process.stdin.flush()
        assert (one.wait(), two.wait()) == (0, 0)
    artifact = artifacts.open(KEY)
    who = artifact.facts("f")["who"]
    assert set(artifact.arrays("w")["a"]) == {float(who)}
    assert [path.name for path in artifacts.root.iterdir()] == [KEY[:2]]


def test_a_store_can_be_shared_by_its_group(put_once):
    folder = folder_of(put_once)
    assert folder.stat().st_mode == folder.parent.stat().st_mode


def test_what_only_a_working_folder_has_is_handed_on(tmp_path: Path) -> None:
    """A worker may be lost after it kept an artifact here and before the upstream had it."""
    description = '{"seed":7}'
    key = hashlib.sha256(description.encode()).hexdigest()
    there = Artifacts(tmp_path / "there")
    Artifacts(tmp_path / "here").put(key, description, lambda draft: draft.facts("m", {"a": 1}))
    here = Artifacts(tmp_path / "here", there)
    assert key not in there
    assert here.settle(key)
    assert there.open(key).facts("m") == {"a": 1}
    assert here.settle(key)
    assert not here.settle(hashlib.sha256(b"another").hexdigest())


def test_a_bad_copy_of_a_working_folder_is_no_fault_of_the_upstream(tmp_path: Path) -> None:
    description = '{"seed":8}'
    key = hashlib.sha256(description.encode()).hexdigest()
    there = Artifacts(tmp_path / "there")
    there.put(key, description, lambda draft: draft.facts("m", {"a": 1}))
    here = Artifacts(tmp_path / "here", there)
    assert here.open(key).facts("m") == {"a": 1}
    (tmp_path / "here" / key[:2] / key / "m.json").write_text('{"a":2}')
    with pytest.raises(ArtifactDamaged):
        here.open(key).facts("m")
    assert here.forget(key, "a bit")
    assert here.open(key).facts("m") == {"a": 1}
    assert key in there
