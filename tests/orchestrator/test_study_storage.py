"""Where a study is kept: journals of killed and of living drivers, databases that are away."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.study_storage import JOURNAL, StudyAway, open_storage

# How a driver writes: argv is address (or ""), store, number of trials.
DRIVER = """
import sys
from pathlib import Path
import optuna
from orchestrator.study_storage import open_storage
import sqlalchemy.dialects.postgresql.psycopg
import alembic.command
optuna.storages.RDBStorage
optuna.logging.set_verbosity(optuna.logging.ERROR)
print("ready", flush=True)
sys.stdin.readline()
storage = open_storage(sys.argv[1] or None, Path(sys.argv[2]))
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
for _ in range(int(sys.argv[3])):
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
print("done", flush=True)
"""
# A driver that holds the journal's lock and stays so.
HOLDER = """
import sys
from pathlib import Path
from orchestrator.study_storage import _Lock
_Lock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def filled(uri: str | None, store: Path, trials: int = 3) -> None:
    study = optuna.create_study(storage=open_storage(uri, store), study_name="s")
    for i in range(trials):
        study.tell(study.ask(), float(i))


def values(uri: str | None, store: Path) -> list[Any]:
    study = optuna.load_study(storage=open_storage(uri, store), study_name="s")
    return [trial.value for trial in study.trials]


def refused(uri: str | None, store: Path, *parts: str) -> str:
    with pytest.raises(StudyAway) as caught:
        open_storage(uri, store)
    said = str(caught.value)
    for part in parts:
        assert part in said
    assert said.isprintable()
    assert len(said) < 900
    return said


def finish(drivers: list[subprocess.Popen[str]]) -> None:
    """Let drivers open their storage and write, all at the same time."""
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n", driver.communicate()[1]
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
    for driver in drivers:
        said, errors = driver.communicate(timeout=60)
        assert said == "done\n", errors


# -- the journal ----------------------------------------------------------------------------------


def test_the_journal_is_made_in_a_new_store_and_read_again(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "store"
    filled(None, store)
    assert (store / JOURNAL).is_file()
    assert values(None, store) == [0.0, 1.0, 2.0]


def test_a_killed_holder_of_the_lock_blocks_nobody(tmp_path: Path) -> None:
    filled(None, tmp_path)
    holder = started(HOLDER, tmp_path / JOURNAL)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    begun = time.monotonic()
    study = optuna.load_study(storage=open_storage(None, tmp_path), study_name="s")
    study.tell(study.ask(), 3.0)
    assert time.monotonic() - begun < 3
    assert values(None, tmp_path) == [0.0, 1.0, 2.0, 3.0]


def test_a_living_holder_of_the_lock_is_waited_for_even_if_suspended(tmp_path: Path) -> None:
    filled(None, tmp_path)
    study = optuna.load_study(storage=open_storage(None, tmp_path), study_name="s")
    holder = started(HOLDER, tmp_path / JOURNAL)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    writer = threading.Thread(target=lambda: study.add_trial(optuna.create_trial(value=9.0)))
    before = (tmp_path / JOURNAL).read_bytes()
    writer.start()
    writer.join(1.0)
    assert writer.is_alive()
    assert (tmp_path / JOURNAL).read_bytes() == before
    holder.send_signal(signal.SIGCONT)
    holder.communicate("\n")
    writer.join(10)
    assert not writer.is_alive()
    assert values(None, tmp_path)[-1] == 9.0


def test_four_drivers_at_once_lose_and_spoil_nothing(tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(None, tmp_path), study_name="s")
    finish([started(DRIVER, "", tmp_path, 20) for _ in range(4)])
    assert values(None, tmp_path) == [0.5] * 80
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    count = Counter(json.loads(line)["op_code"] for line in lines)
    assert count[4] == 80  # CREATE_TRIAL


def test_a_driver_killed_at_any_byte_of_a_record_leaves_a_journal_that_goes_on(
    tmp_path: Path,
) -> None:
    filled(None, tmp_path, trials=2)
    whole = (tmp_path / JOURNAL).read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        store = tmp_path / str(cut)
        store.mkdir()
        (store / JOURNAL).write_bytes(whole[:cut])
        study = optuna.load_study(storage=open_storage(None, store), study_name="s")
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
        study.tell(1, 7.0)
        assert values(None, store) == [0.0, 7.0]


def test_a_record_half_written_by_another_is_cut_off_by_a_driver_that_was_open(
    tmp_path: Path,
) -> None:
    filled(None, tmp_path)
    study = optuna.load_study(storage=open_storage(None, tmp_path), study_name="s")
    with open(tmp_path / JOURNAL, "ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"dead","study')
    assert len(study.get_trials()) == 3
    study.tell(study.ask(), 3.0)
    assert values(None, tmp_path) == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\0",
        b"{}",
        b"[1]",
        b"7",
        b"null",
        b"\xff\xfe{",
        b"",
        b'{"op_code":4,"wor{"op_code":5}',
    ],
)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_garbage_in_the_journal_is_told_with_its_line(
    tmp_path: Path, garbage: bytes, place: str
) -> None:
    filled(None, tmp_path)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines()
    number = {"first": 1, "middle": 4, "last": len(lines)}[place]
    lines[number - 1] = garbage
    (tmp_path / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
    said = refused(None, tmp_path, str(tmp_path / JOURNAL), f"in line {number}:", "move the file")
    # The remedy that keeps most is one.
    assert f"head -n {number - 1}" in said
    (tmp_path / JOURNAL).write_bytes(b"".join(line + b"\n" for line in lines[: number - 1]))
    open_storage(None, tmp_path)


def test_a_record_that_optuna_does_not_know_is_told(tmp_path: Path) -> None:
    filled(None, tmp_path)
    with open(tmp_path / JOURNAL, "a") as journal:
        journal.write('{"op_code":999,"worker_id":"later"}\n')
    refused(None, tmp_path, str(tmp_path / JOURNAL), optuna.__version__, "Move the file away")


def test_a_store_that_cannot_be_written_is_told(
    tmp_path: Path, permissions_that_count: Any
) -> None:
    filled(None, tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "file").touch()
    for folder in ("old", "new"):
        (tmp_path / folder).chmod(0o555)
    for file in (tmp_path / "old").iterdir():
        file.chmod(0o444)
    with permissions_that_count():
        for folder in ("old", "new"):
            place = str(tmp_path / folder / JOURNAL)
            refused(None, tmp_path / folder, place, "Permission denied", "--study-uri")
    refused(None, tmp_path / "file", "--study-uri")
    (tmp_path / "folder" / JOURNAL).mkdir(parents=True)
    refused(None, tmp_path / "folder", "Is a directory", "--study-uri")


# -- databases ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "nonsense",
        "/x/optuna.journal",
        "redis://ann:s3cret@host",
        "http://ann:s3cret@host:1",
        "postgresql://",
        "sqlite:///",
        "postgresql://ann:s3cret@host:port/db",
        "mysql:x",
        "postgresql://ann:s3cret@host/\x1b[31m",
        "mongodb://ann:s3cret@" + "h" * 3000,
    ],
)
def test_what_is_no_address_is_told(tmp_path: Path, uri: str) -> None:
    said = refused(uri, tmp_path, "is no address", "postgresql://USER", "sqlite:")
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("password", "quoted"), [("s3c@ret", "%40"), ("s3c/ret", "%2F"), ("a:ret", "%3A")]
)
def test_a_password_that_is_not_quoted_is_not_taken_for_the_host(
    tmp_path: Path, password: str, quoted: str
) -> None:
    said = refused(f"postgresql://ann:{password}@127.0.0.1:1/db", tmp_path, quoted)
    assert "ret" not in said


def test_a_sqlite_database_keeps_a_study(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/study.db"
    filled(uri, tmp_path / "store")
    assert values(uri, tmp_path / "store") == [0.0, 1.0, 2.0]
    assert not (tmp_path / "store").exists()
    absent = f"sqlite:///{tmp_path}/absent/study.db"
    refused(absent, tmp_path, absent, "unable to open", "folder that exists")
    (tmp_path / "junk.db").write_bytes(b"no database at all" * 100)
    refused(f"sqlite:///{tmp_path}/junk.db", tmp_path, "not a database")


@pytest.mark.parametrize(
    ("uri", "hidden", "remedy"),
    [
        ("postgresql://ann:s3cret@127.0.0.1:1/db", "psycopg", "pip install 'sfumato[postgres]'"),
        ("postgresql+psycopg2://ann:s3cret@h/db", "psycopg2", "and write postgresql://"),
        ("mysql+pymysql://ann:s3cret@127.0.0.1/db", "pymysql", "install it"),
    ],
)
def test_a_driver_that_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, hidden: str, remedy: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == hidden]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, hidden, None)  # as Python does for what is not there
    said = refused(uri, tmp_path, "needs the Python package", hidden, remedy)
    assert "s3cret" not in said


@pytest.mark.parametrize("answers", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_server_that_is_away_is_told_soon(tmp_path: Path, answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        if not answers:
            listening.close()
        begun = time.monotonic()
        said = refused(f"postgresql://ann:s3cret@{place}/db", tmp_path, place, "Start the server")
    assert time.monotonic() - begun < 10
    assert "s3cret" not in said


def test_postgresql_keeps_a_study_for_a_second_process(postgres: Any, tmp_path: Path) -> None:
    uri = postgres.new_database()
    filled(uri, tmp_path / "store")
    finish([started(DRIVER, uri, tmp_path / "store", 4)])
    assert values(uri, tmp_path / "store") == [0.0, 1.0, 2.0] + [0.5] * 4
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_drivers_that_are_first_at_once_all_get_in(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        uri = request.getfixturevalue("postgres").new_database()
    finish([started(DRIVER, uri, tmp_path, 3) for _ in range(4)])
    assert values(uri, tmp_path) == [0.5] * 12


def test_a_wrong_password_and_a_missing_database_are_told(postgres: Any, tmp_path: Path) -> None:
    said = refused(
        postgres.uri(password="wr0ng/one"),
        tmp_path,
        f"postgresql://***@{postgres.place}/postgres",
        "password authentication failed",
        "Correct the user or the password",
    )
    assert "wr0ng" not in said
    said = refused(postgres.uri("absent"), tmp_path, '"absent" does not exist', "Create that")
    assert "s3cret" not in said


def test_a_server_that_was_stopped_is_told_and_back_again_has_everything(
    postgres: Any, tmp_path: Path
) -> None:
    uri = postgres.new_database()
    filled(uri, tmp_path)
    kept_open = open_storage(uri, tmp_path)
    assert len(kept_open.get_all_studies()) == 1
    postgres.stop()
    try:
        begun = time.monotonic()
        said = refused(uri, tmp_path, postgres.place, "Start the server", "refused")
        assert time.monotonic() - begun < 10
        assert "s3cret" not in said
    finally:
        postgres.start()
    assert values(uri, tmp_path) == [0.0, 1.0, 2.0]
    # Its pooled connection is dead, which is found out before it is used.
    assert len(kept_open.get_all_studies()) == 1


def test_the_postgresql_server_is_on_loopback_only(postgres: Any) -> None:
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == postgres.port:
                listening.add(local.rpartition(":")[0])
    assert listening == {"0100007F"}
    assert os.geteuid() != 0 or postgres.owner
