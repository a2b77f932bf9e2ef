"""Artifacts at an URI: task.json last, half of an artifact never seen, a server that is away."""

import hashlib
import itertools
import json
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from storage import remote
from storage._objects import each
from storage.artifacts import (
    ArtifactDamaged,
    ArtifactMissing,
    Artifacts,
    Draft,
    StoreUnwritable,
)
from storage.remote import ObjectStore, check_uri
from storage.upstream import Upstream

TASK = '{"seed":1}'
KEY = hashlib.sha256(TASK.encode()).hexdigest()
PLACE = f"artifacts/{KEY[:2]}/{KEY}"


def fill(draft: Draft, loss: float = 0.5) -> None:
    draft.arrays("weights", {"w": np.arange(6.0).reshape(2, 3)})
    draft.table("answers", {"p": np.full((4, 3), 1 / 3)})
    draft.facts("metrics", {"loss": loss})


def made(root: Path, loss: float = 0.5) -> dict[str, bytes]:
    """The files of one artifact."""
    artifacts = Artifacts(root / f"made-{loss}")
    artifacts.put(KEY, TASK, lambda draft: fill(draft, loss))
    return artifacts.fetch(KEY)


class Counted:
    """A filesystem that counts what is asked, and fails at one write.

    Attributes:
        writes: how many writes may begin; the next fails as of a process that is killed there.
        listings: how many folders were listed.
        asked: how many files were asked for by name.
    """

    def __init__(self, real: Any, writes: int = 10**9) -> None:
        self._real, self.writes = real, writes
        self.listings = self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def open_output_stream(self, path: str) -> Any:
        self.writes -= 1
        if self.writes < 0:
            raise OSError("killed")
        return self._real.open_output_stream(path)

    def get_file_info(self, what: Any) -> Any:
        self.listings += isinstance(what, fs.FileSelector)
        self.asked += isinstance(what, str)
        return self._real.get_file_info(what)


def counted(uri: str, writes: int = 10**9) -> tuple[ObjectStore, Counted]:
    """A store seen as by another process: it knows nothing yet."""
    files = Counted(ObjectStore(uri).objects._files, writes)
    return ObjectStore(uri, files), files


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3").new_uri())
    return f"file://{tmp_path}/remote"


def test_what_was_kept_comes_back_whole_in_another_process(uri: str, tmp_path: Path) -> None:
    files = made(tmp_path)
    upstream: Upstream = ObjectStore(uri)
    assert not upstream.holds(KEY)
    with pytest.raises(ArtifactMissing, match=KEY):
        upstream.fetch(KEY)
    upstream.keep(KEY, files)
    other, _ = counted(uri)
    assert other.holds(KEY)
    assert other.fetch(KEY) == files
    assert list(other.keys()) == [KEY]
    assert other.describe(KEY) == {"seed": 1}
    assert pickle.loads(pickle.dumps(other)).fetch(KEY) == files
    assert {upstream, pickle.loads(pickle.dumps(upstream))} == {ObjectStore(uri)}


def test_a_folder_is_an_upstream_too(tmp_path: Path) -> None:
    files = made(tmp_path)
    upstream: Upstream = Artifacts(tmp_path / "shelf")
    upstream.keep(KEY, files)
    assert upstream.holds(KEY)
    assert upstream.fetch(KEY) == files
    upstream.keep(KEY, made(tmp_path, loss=0.25))
    assert upstream.fetch(KEY) == files, "the first whole copy wins"
    bad = files | {"metrics.json": b"{}"}
    with pytest.raises(ArtifactDamaged, match="metrics"):
        Artifacts(tmp_path / "other").keep(KEY, bad)
    assert KEY not in Artifacts(tmp_path / "other")
    other = hashlib.sha256(b'{"seed":2}').hexdigest()
    with pytest.raises(ArtifactDamaged, match="says key"):
        Artifacts(tmp_path / "other").keep(other, files)


def test_a_writer_stopped_anywhere_leaves_nothing_to_be_seen(uri: str, tmp_path: Path) -> None:
    files = made(tmp_path)
    for stop in range(len(files)):
        writer, _ = counted(uri, writes=stop)
        with pytest.raises(StoreUnwritable, match="killed"):
            writer.keep(KEY, files)
        reader, _ = counted(uri)
        assert not reader.holds(KEY)
        assert list(reader.keys()) == []
        assert reader.present([KEY]) == set()
        with pytest.raises(ArtifactMissing):
            reader.fetch(KEY)
    writer, _ = counted(uri)
    writer.keep(KEY, files)
    assert counted(uri)[0].fetch(KEY) == files


def test_two_writers_of_the_same_task_never_mix_their_copies(uri: str, tmp_path: Path) -> None:
    """Clocks differ, so the same task gives other bytes; whoever writes when, one copy is whole."""
    first, second = made(tmp_path, loss=0.5), made(tmp_path, loss=0.25)
    for stop in range(len(first)):
        late, _ = counted(uri, writes=stop)
        with pytest.raises(StoreUnwritable):
            late.keep(KEY, first)
        ObjectStore(uri).keep(KEY, second)
        # As if it had not been stopped: it has looked for a mark before there was one.
        if stop == len(first) - 1:
            ObjectStore(uri).objects.write(f"{PLACE}/task.json", first["task.json"])
        assert counted(uri)[0].fetch(KEY) in (first, second)
        ObjectStore(uri).drop(KEY)
        assert ObjectStore(uri).objects.listing("artifacts") == {}


def test_writers_at_the_same_moment_leave_one_whole_copy(uri: str, tmp_path: Path) -> None:
    copies = [made(tmp_path, loss=number / 8) for number in range(8)]
    writers = [counted(uri)[0] for _ in copies]
    gate = threading.Barrier(len(copies))
    seen: list[dict[str, bytes]] = []

    def write(writer: ObjectStore, files: dict[str, bytes]) -> None:
        gate.wait()
        writer.keep(KEY, files)
        seen.append(counted(uri)[0].fetch(KEY))

    each(lambda pair: write(*pair), zip(writers, copies, strict=True))
    assert len(seen) == len(copies)
    assert all(files in copies for files in [*seen, ObjectStore(uri).fetch(KEY)])


@pytest.mark.parametrize("what", ["shorter", "other", "gone", "mark"])
def test_a_damaged_copy_is_said_set_aside_and_replaced(uri: str, tmp_path: Path, what: str) -> None:
    files = made(tmp_path)
    store, _ = counted(uri)
    store.keep(KEY, files)
    names = sorted(store.objects.listing("artifacts"))
    name = next(n for n in names if n.endswith("task.json" if what == "mark" else "metrics.json"))
    content = store.objects.read(name)
    if what == "gone":
        store.objects.remove(name)
    else:
        store.objects.write(name, content[:-3] if what != "other" else content[::-1])
    with pytest.raises(ArtifactDamaged, match=r"metrics|task\.json"):
        counted(uri)[0].fetch(KEY)
    artifacts = Artifacts(tmp_path / "copy", counted(uri)[0])
    with pytest.raises(ArtifactDamaged):
        artifacts.open(KEY)
    assert artifacts.set_aside(KEY, "found damaged") is not None
    assert artifacts.state(KEY) == "absent"
    kept = counted(uri)[0].objects.listing("damaged")
    assert f"damaged/{KEY}-0/reason.txt" in kept
    assert len(kept) == 1 + len(files) - (what == "gone")
    artifacts.put(KEY, TASK, fill)
    assert counted(uri)[0].fetch(KEY)["metrics.json"] == files["metrics.json"]


def test_a_half_that_has_a_mark_is_replaced_by_the_next_put(uri: str, tmp_path: Path) -> None:
    """As where somebody removed a payload by hand: what is put then is whole."""
    files = made(tmp_path)
    store, _ = counted(uri)
    store.keep(KEY, files)
    for name in store.objects.listing("artifacts"):
        if "weights" in name:
            store.objects.remove(name)
    counted(uri)[0].keep(KEY, files)
    assert counted(uri)[0].fetch(KEY) == files


def test_a_copy_fetches_what_it_opens_and_hands_on_what_it_puts(uri: str, tmp_path: Path) -> None:
    one = Artifacts(tmp_path / "one", counted(uri)[0])
    two = Artifacts(tmp_path / "two", counted(uri)[0])
    assert one.state(KEY) == "absent"
    with pytest.raises(ArtifactMissing):
        one.open(KEY)
    one.put(KEY, TASK, fill)
    assert two.state(KEY) == "complete"
    assert KEY in two
    assert not (two.root / KEY[:2]).exists(), "looked at, not fetched"
    assert two.open(KEY).facts("metrics") == {"loss": 0.5}
    shutil.rmtree(tmp_path / "one")
    assert one.open(KEY).arrays("weights")["w"].shape == (2, 3)
    assert list(Artifacts(two.root).keys()) == [KEY], "a folder of its own, once fetched"


def test_local_damage_is_healed_from_a_sound_copy(uri: str, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "store" / "artifacts", ObjectStore(uri))
    artifacts.put(KEY, TASK, fill)
    file = artifacts.root / KEY[:2] / KEY / "metrics.json"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(ArtifactDamaged):
        artifacts.open(KEY).facts("metrics")
    assert artifacts.set_aside(KEY, "checksum") is not None
    assert artifacts.open(KEY).facts("metrics") == {"loss": 0.5}, "the URI's copy was sound"
    assert ObjectStore(uri).objects.listing("damaged") == {}
    file.write_bytes(b"short")
    assert artifacts.state(KEY) == "complete"
    assert artifacts.open(KEY).facts("metrics") == {"loss": 0.5}


def test_what_was_put_while_the_upstream_was_away_is_handed_on_later(
    uri: str, tmp_path: Path
) -> None:
    away, _ = counted(uri, writes=1)
    artifacts = Artifacts(tmp_path / "artifacts", away)
    with pytest.raises(StoreUnwritable):
        artifacts.put(KEY, TASK, fill)
    artifacts = Artifacts(tmp_path / "artifacts", counted(uri)[0])
    assert artifacts.state(KEY) == "complete", "it stays here"
    assert artifacts.hand_on([KEY, "0" * 64]) == 1
    assert artifacts.hand_on([KEY]) == 0
    assert counted(uri)[0].fetch(KEY) == artifacts.fetch(KEY)


def test_thousands_of_keys_cost_one_listing(uri: str, tmp_path: Path) -> None:
    files = made(tmp_path)
    ObjectStore(uri).keep(KEY, files)
    keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(3000)]
    store, asked = counted(uri)
    artifacts = Artifacts(tmp_path / "copy", store)
    assert artifacts.present([*keys, KEY]) == {KEY}
    assert (asked.listings, asked.asked) == (1, 0)
    assert artifacts.present([KEY]) == {KEY}
    assert (asked.listings, asked.asked) == (1, 0), "what was seen once is known"


REFUSED = {
    "s3://AKIA:SECRET@bucket/store": "AWS_ACCESS_KEY_ID",
    "s3://AKIA@bucket/store": "AWS_ACCESS_KEY_ID",
    "s3://bucket/store?secret_key=SECRET": "AWS_SECRET_ACCESS_KEY",
    "s3://bucket/store?colour=red": "'colour' is unknown",
    "s4://bucket/store": "is no address of a store",
    "s3://": "names no place",
    "s3:///store": "names no place",
    "file:///": "names no place",
    "hdfs://ann:SECRET@host/x": "environment",
    "s3://bucket/a\x1bb": "is no address",
}


@pytest.mark.parametrize("bad", REFUSED)
def test_addresses_that_are_none(bad: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_uri(bad)
    assert REFUSED[bad] in str(caught.value)
    assert "SECRET@" not in str(caught.value)
    assert "=SECRET" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_address_has_one_spelling() -> None:
    assert check_uri("s3://bucket/a/?region=x") == check_uri("s3://bucket/a?region=x")
    assert check_uri("abfss://box@account.dfs.core.windows.net/a")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    held, ended = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while not ended.is_set():
                held.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        ended.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()
        for connection in held:
            connection.close()


def test_a_server_that_is_away_is_told_soon(s3: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    away = s3.uri("bucket", port)
    store, began = ObjectStore(away), time.monotonic()
    with pytest.raises(StoreUnwritable) as caught:
        store.holds(KEY)
    assert time.monotonic() - began < 10
    for part in (away, "Could not connect", "endpoint", "bucket exists", "AWS_ACCESS_KEY_ID"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreUnwritable):
        store.fetch(KEY)
    artifacts = Artifacts(tmp_path / "artifacts", store)
    with pytest.raises(StoreUnwritable):
        artifacts.put(KEY, TASK, fill)
    assert list(Artifacts(tmp_path / "artifacts").keys()) == [KEY], "what was computed stays"


def test_a_bucket_that_is_not_there(s3: Any, tmp_path: Path) -> None:
    store = ObjectStore(s3.uri("nobody"))
    with pytest.raises(StoreUnwritable, match="there is no bucket 'nobody'"):
        store.objects.check()
    with pytest.raises(StoreUnwritable, match="bucket"):
        store.keep(KEY, made(tmp_path))


@pytest.mark.slow
def test_a_server_that_says_nothing_is_told_after_some_twenty_seconds(s3: Any, silent: int) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnwritable, match=r"Timeout|too slow"):
        ObjectStore(s3.uri("bucket", silent)).holds(KEY)
    assert time.monotonic() - began < 30
    began = time.monotonic()
    with pytest.raises(StoreUnwritable, match=r"Timeout|too slow"):
        ObjectStore(s3.uri("bucket", silent)).fetch(KEY)
    assert time.monotonic() - began < 1, "who winds up does not wait again"


def test_the_endpoint_may_come_from_the_environment(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.new_bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    ObjectStore(f"s3://{bucket}/store").keep(KEY, made(tmp_path))
    assert ObjectStore(s3.uri(bucket)).holds(KEY)


def test_what_a_process_knows_is_its_own(s3: Any) -> None:
    """A forked child opens its own connections."""
    uri = s3.new_uri()
    assert remote._place(uri, 1) is not remote._place(uri, 2)
    assert remote._place(uri, 1) is remote._place(uri, 1)


def test_objects_say_what_they_are(s3: Any, tmp_path: Path) -> None:
    """The layout is that of a folder, but that payload carries its hash in front."""
    uri, files = s3.new_uri(), made(tmp_path)
    ObjectStore(uri).keep(KEY, files)
    listed = ObjectStore(uri).objects.listing("artifacts")
    sums = {n: f["sha256"][:16] for n, f in json.loads(files["task.json"])["files"].items()}
    assert set(listed) == {
        f"{PLACE}/task.json",
        *(f"{PLACE}/{digest}-{name}" for name, digest in sums.items()),
    }
    assert all(not a.startswith(b) for a, b in itertools.permutations(listed, 2))
