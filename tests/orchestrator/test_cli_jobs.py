"""`sfumato submit`, `jobs`, `logs` and `stop` against a real head that asks for a token.

The head's Python has the packages that Sfumato needs but not Sfumato, so what a job imports was
sent with it.
"""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.jobs import Job, Jobs
from orchestrator._job_words import code_of, how, plain
from orchestrator._shipment import PACKAGES, make_shipment
from orchestrator.source import ConfigError

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
SECRET = "s3cret-of-ann"
SPLIT = {"members": 60, "reference": 60, "nonmembers": 60}
TINY = {
    "datasets": [{"name": "own", "path": "own.npz", "split": SPLIT}],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "attacks": ["gap"],
}
# An attack that only the copy has, and that says where it ran from.
MARKED = '''
"""Says where it is."""

from pathlib import Path
from typing import ClassVar

import numpy as np

import tasks
from attacks.base import Attack


class Marked(Attack):
    """The gap attack. Source: none."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[str] = "label"
    THRESHOLD: ClassVar[float] = 0.5

    to: str
    broken: bool = False

    def score(self, query, known, x, y, *, seed):
        with open(self.to, "a") as file:
            print(__file__, tasks.__file__, file=file)
        if self.broken:
            raise RuntimeError("broken as asked")
        return np.asarray(query(x) == y, dtype=np.float64)
'''


@dataclass
class Head:
    """A Ray head on loopback, and a copy of our code with a further attack in it.

    Attributes:
        folder: for everything, with a short path as sockets are in it.
        url: of its dashboard.
        token: the file with its token.
        python: of the head.
    """

    folder: Path
    url: str
    token: Path
    python: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def copy(self) -> Path:
        return self.folder / "copy"

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.url)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SFUMATO_"))}
        return {**kept, "RAY_AUTH_TOKEN_PATH": str(self.token), "HOME": str(self.folder), **more}

    def file(self, name: str, **keys: Any) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**TINY, **keys}))
        return str(path)

    def command(self, *args: str, at: Path | None = None, **more: str) -> tuple[int, str]:
        """A command as a process, of the code in a folder; default: the copy."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *args, "--address", self.url],
            cwd=at or self.copy,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, done.stdout

    def submit(self, *args: str, **more: str) -> tuple[int, str]:
        return self.command("submit", *args, "--store", str(self.store), "--workers", "1", **more)


def free_ports(num: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def bare_python(folder: Path) -> Path:
    """A Python with the packages of this one, but for those that are being developed."""
    venv.create(folder, with_pip=False, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    # Files like this one are not read in the folder it names, so editable installs are not found.
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    found = subprocess.run([python, "-c", "import orchestrator"], cwd=folder, capture_output=True)
    assert b"No module named 'orchestrator'" in found.stderr
    return python


def processes_of(folder: Path) -> set[int]:
    """Those that were started with the folder in their environment, whoever their parent is."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="sfumato-"))
    token = folder / "token"
    token.write_text("f00d" * 16)
    python = bare_python(folder / "bare")
    gcs, dashboard, agent, grpc, metrics, client = free_ports(6)
    made = Head(folder, f"http://127.0.0.1:{dashboard}", token, python)
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, made.copy / package, ignore=skip)
    (made.copy / "attacks" / "marked.py").write_text(MARKED)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    np.savez(folder / "own.npz", x=rng.normal(size=(300, 6)) + y[:, None], y=y)
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": grpc,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "temp-dir": folder / "ray",
        "num-cpus": 2,
        "num-gpus": 0,
        "object-store-memory": 80_000_000,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
            cwd=folder,
            env=made.environment(
                RAY_AUTH_MODE="token",
                RAY_USAGE_STATS_ENABLED="0",
                SPT_NOENV="1",  # else process titles are written over environments
                RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # what makes Ray listen on loopback only
                # pip, which Ray calls by name, is of this Python.
                PATH=f"{python.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + PATIENCE_S
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment().items():
                patch.setenv(name, value)
            for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
                patch.delenv(name, raising=False)
            while True:
                try:
                    assert made.jobs.all() == []
                    break
                except RuntimeError:
                    log_text = (folder / "head.log").read_text()
                    assert process.poll() is None, log_text
                    assert time.monotonic() < until, log_text
                    time.sleep(0.5)
            yield made
    finally:
        process.terminate()
        process.wait(60)
        until = time.monotonic() + 10
        while (left := processes_of(folder)) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def job_of(said: str) -> str:
    found = re.search(r"^job: +(\S+)$", said, re.MULTILINE)
    assert found, said
    return found[1]


@pytest.mark.ray
def test_an_experiment_is_sent_and_resumes(head: Head) -> None:
    marks = head.folder / "marks"
    file = head.file("mine", attacks=["gap", {"name": "marked", "to": str(marks)}])
    environment = {"MLFLOW_TRACKING_PASSWORD": SECRET, "SFUMATO_DATA": str(head.folder)}
    more = ["--set", "target.epochs=3", "--follow"]
    code, said = head.submit(file, *more, **environment)
    assert code == 0, said
    job_id = job_of(said)
    assert re.fullmatch(r"mine-\d{8}-\d{6}", job_id)
    assert "1 data file, the experiment" in said
    assert f"job {job_id}: succeeded after" in said
    # The job and its worker imported what was sent, as the attack is nowhere else.
    [ran] = marks.read_text().splitlines()
    for path in ran.split():
        assert path.startswith(str(head.folder / "ray")), path
    kept = yaml.safe_load((head.store / "experiments/mine/experiment.yaml").read_text())
    assert kept["target"]["epochs"] == 3

    code, again = head.submit(file, *more)
    assert code == 0, again
    assert "nothing to run: all" in again
    assert len(marks.read_text().splitlines()) == 1

    told = [repr(vars(each)) for each in head.jobs._client.list_jobs()]
    told += [head.jobs.log(job_id), said]
    for secret in (SECRET, head.token.read_text()):
        assert not any(secret in text for text in told)


@pytest.mark.ray
@pytest.mark.slow
def test_what_the_cluster_refuses_is_the_exit_code(head: Head, place: Any) -> None:
    file = head.file("refused")
    options = ["--address", head.url, "--data-dir", "/no/such/folder"]
    said = place.command("submit", file, *options, "--follow")
    assert said.code == 2, said.text
    assert "the data folder /no/such/folder does not exist" in said.flat
    assert "failed after" in said.flat
    job_id = job_of(said.text)
    assert head.jobs.get(job_id).exit_code == 2
    # Without --store it is in the home folder there; the shell is to find that, and nothing else.
    assert "--store ~/sfumato-store --data-dir /no/such/folder -- refused.yaml" in said.flat
    said = place.command("submit", file, *options, "--follow", "--python", "no such $(python)")
    assert said.code == 1
    assert "give --python" in said.flat


@pytest.mark.ray
@pytest.mark.slow
def test_a_running_job_is_followed_left_and_stopped(head: Head, place: Any) -> None:
    # Minutes long.
    target = {"architecture": "mlp_s", "epochs": 10_000, "hidden": [512, 512]}
    options = ["--address", head.url]
    there = ["--store", head.store, "--workers", "1"]
    long = head.file("long", target=target)
    said = place.command("submit", long, *options, *there)
    assert said.code == 0, said.text
    job_id = job_of(said.text)
    assert f"sfumato logs {job_id} --follow --address {head.url}" in said.flat

    follower = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "logs", "--follow", *options],
        cwd=ROOT,
        env=head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert follower.stdout is not None
    line = ""
    while "tasks to run" not in line:
        assert select.select([follower.stdout], [], [], PATIENCE_S)[0], "the job says nothing"
        line = follower.stdout.readline()
        assert line, "the log ended"
    follower.send_signal(signal.SIGINT)
    rest = follower.communicate(timeout=PATIENCE_S)[0]
    assert follower.returncode == 130, rest
    assert f"the job goes on: `sfumato logs {job_id}" in rest
    assert "asyncgen" not in rest

    listed = place.command("jobs", *options).text.splitlines()
    [row] = [line for line in listed if job_id in line]
    assert "running" in row
    assert row == listed[1]  # the newest first
    said = place.command("stop", *options)
    assert said.code == 0, said.text
    assert f"job {job_id} is stopped" in said.flat
    # It had the time to end as after Ctrl-C.
    log = place.command("logs", job_id[:-1], *options)
    assert "everything finished so far is kept" in log.flat
    said = place.command("stop", job_id, *options)
    assert "had ended already: stopped" in said.flat
    said = place.command("stop", *options)
    place.refused(said, "no running job")
    said = place.command("logs", job_id, "--follow", *options)
    assert said.code == 130
    assert "stopped after" in said.flat


@pytest.mark.ray
def test_a_token_that_is_missing_or_wrong_is_told(
    head: Head, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = len(head.jobs.all())
    file = head.file("mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "beef" * 16)
    said = place.command("submit", file, "--address", head.url)
    place.refused(said, head.url, "the token of RAY_AUTH_TOKEN is not its token", "~/.ray")
    assert "beef" not in said.text
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    for command in (["submit", file], ["jobs"], ["logs"], ["stop"]):
        said = place.command(*command, "--address", head.url)
        place.refused(said, head.url, "we have no token", "ray get-auth-token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    assert len(head.jobs.all()) == num


@pytest.mark.ray
@pytest.mark.slow
def test_a_task_that_fails_is_code_1(head: Head) -> None:
    broken = {"name": "marked", "to": str(head.folder / "broken"), "broken": True}
    code, said = head.submit(head.file("broken", attacks=[broken]), "--follow")
    assert code == 1, said
    assert "broken as asked" in said
    assert "some task failed" in said


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_is_sent(head: Head) -> None:
    tune = {"defense": "rounding", "space": {"decimals": [1, 2]}, "attacks": ["gap"], "trials": 2}
    attacks = [{"name": "metric", "statistic": "confidence"}]
    file = head.file("search", tune={**tune, "judged": 1}, attacks=attacks)
    code, said = head.submit(file, "--tune", "--follow")
    assert code == 0, said
    assert (head.store / "experiments" / "search" / "front.yaml").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_release_is_sent_as_a_wheel(head: Head) -> None:
    """What pip leaves of a release, with the attack in it, so that no other code will do."""
    site = head.folder / "site"
    for package in PACKAGES:
        shutil.copytree(head.copy / package, site / package)
    info = site / "sfumato-0.1.0.dist-info"
    info.mkdir()
    told = metadata.distribution("sfumato").read_text("METADATA")
    (info / "METADATA").write_text(told or "Metadata-Version: 2.1\nName: sfumato\nVersion: 0.1.0\n")
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    marks = head.folder / "wheel marks"
    file = head.file("release", attacks=[{"name": "marked", "to": str(marks)}])
    elsewhere = head.folder / "elsewhere"
    elsewhere.mkdir()
    options = ["--store", str(head.store), "--workers", "1", "--follow"]
    code, said = head.command("submit", file, *options, at=elsewhere, PYTHONPATH=str(site))
    assert code == 0, said
    for path in marks.read_text().split():
        assert "py_modules_files" in path
    sent = next(job for job in head.jobs._client.list_jobs() if job.submission_id == job_of(said))
    assert re.search(r"sfumato-0.1.0-0h[0-9a-f]{16}-py3-none-any.whl", str(sent.runtime_env))


# -- before anything is sent -----------------------------------------------------------------------

NOBODY = ["--address", "http://127.0.0.1:1"]


def test_all_problems_of_the_file_are_told_before_the_cluster_is_asked(place: Any) -> None:
    said = place.command("submit", place.file(attacks=["gapp"], seeds=[-1]), *NOBODY)
    place.refused(said, "2 problems", "gapp", "seeds")
    said = place.command("submit", place.file(), *NOBODY)
    place.refused(said, "no cluster answers at http://127.0.0.1:1", "Connection refused")
    said = place.command("submit", place.file(), "--tune", *NOBODY)
    place.refused(said, "no block `tune`")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            ["--store", "s3://KEY:hidden@bucket/store"],
            ["--store 's3://bucket/store' is given with a secret", "AWS_ACCESS_KEY_ID"],
        ),
        (["--store", "store"], ["--store store", "the whole path"]),
        (["--data-dir", "data"], ["--data-dir data", "the whole path"]),
        (["--study-uri", "postgresql://h/x"], ["--study-uri is for --tune"]),
        (["--tracking-uri", "nonsense"], ["--tracking-uri", "is no address"]),
        (["--tracking-uri", f"http://ann:{SECRET}@h:5000"], ["MLFLOW_TRACKING_PASSWORD"]),
        (["--tune", "--study-uri", f"postgresql://ann:{SECRET}@h/x"], ["PGPASSWORD"]),
        (["--set", "seeds"], ["--set", "key=value"]),
    ],
)
def test_options_are_refused_before_the_cluster_is_asked(
    place: Any, given: list[str], parts: list[str]
) -> None:
    said = place.command("submit", place.file(), *given, *NOBODY)
    place.refused(said, *parts)
    assert SECRET not in said.text


@pytest.mark.parametrize("uri", ["postgresql://ann@h/x", "http://h:5000", "sqlite:////s/m.db"])
def test_addresses_without_a_secret_are_passed_on(place: Any, uri: str) -> None:
    said = place.command("submit", place.file(), "--tracking-uri", uri, *NOBODY)
    place.refused(said, "no cluster answers")  # the next thing to be wrong


@pytest.mark.parametrize("uri", ["http://t0ken@h:5000", "postgresql://h/x?password=t0ken"])
def test_other_secrets_are_refused(place: Any, uri: str) -> None:
    said = place.command("submit", place.file(), "--tracking-uri", uri, *NOBODY)
    place.refused(said, "holds a secret")
    assert "t0ken" not in said.text


@pytest.mark.parametrize(
    ("status", "exit_code", "code", "word"),
    [
        ("succeeded", 0, 0, "all done"),
        ("failed", 1, 1, "some task failed"),
        ("failed", 2, 2, "bad input"),
        ("failed", 130, 130, "interrupted"),
        ("failed", 127, 1, "--python"),
        ("failed", -9, 1, "signal 9"),
        ("failed", None, 1, "no such node"),
        ("stopped", None, 130, "submitting it again"),
    ],
)
def test_a_job_ends_as_a_run_does(status: Any, exit_code: int | None, code: int, word: str) -> None:
    job = Job("a-1", status, exit_code=exit_code, message="no such node")
    assert code_of(job) == code
    assert word in how(job)


def test_a_log_moves_no_cursor() -> None:
    assert plain("50 %\r\x1b[2Jé\tdone\n") == "50 %\\r\\x1b[2Jé\tdone\n"


def own(place: Any, name: str = "own.npz") -> Path:
    rng = np.random.default_rng(0)
    path: Path = place.folder / name
    np.savez(path, x=rng.normal(size=(300, 6)), y=rng.integers(0, 3, 300))
    return path


def shipped(file: str, **options: Any) -> Any:
    given = {"tune": False, "data_dir": None, "data_stays": False, **options}
    return make_shipment(file, (), **given)


def test_data_named_by_path_go_along_or_stay(place: Any) -> None:
    path = own(place)
    file = place.file(datasets=[{"name": "own", "path": "own.npz", "split": SPLIT}])
    sent = shipped(file)
    written = yaml.safe_load(sent.content["tiny.yaml"])
    inside = written["datasets"][0]["path"]
    assert inside.startswith("data/")
    assert sent.content[inside] == path
    stays = shipped(file, data_stays=True)
    assert yaml.safe_load(stays.content["tiny.yaml"])["datasets"][0]["path"] == str(path)
    assert list(stays.content) == ["tiny.yaml"]
    assert not stays.unchecked


def test_what_only_the_cluster_has_is_not_checked_if_that_is_said(place: Any) -> None:
    gone = {"name": "own", "path": "/shared/own.npz", "split": SPLIT}
    file = place.file(datasets=[gone])
    with pytest.raises(ConfigError, match=r"there is no file /shared/own.npz.*--data-stays"):
        shipped(file)
    sent = shipped(file, data_stays=True)
    assert sent.unchecked == ["own"]
    wrong = place.file(datasets=[gone], attacks=["gapp"])  # is told nevertheless
    with pytest.raises(ConfigError, match="1 problem") as error:
        shipped(wrong, data_stays=True)
    assert "gapp" in str(error.value)


def test_named_data_go_along_unless_the_cluster_has_them(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own(place, "location30.npz")
    file = place.file(datasets=[{"name": "location30", "split": SPLIT}])
    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    with pytest.raises(ConfigError, match="--data-dir as it is there"):
        shipped(file)
    there = shipped(file, data_dir="/shared/data")
    assert there.unchecked == ["location30"]
    monkeypatch.setenv("SFUMATO_DATA", str(place.folder))
    sent = shipped(file)
    assert sent.named
    assert sent.content["data/location30.npz"] == path
    there = shipped(file, data_dir="/shared/data")
    assert not there.unchecked
    assert list(there.content) == ["tiny.yaml"]


def test_data_above_the_limit_are_refused_with_the_remedy(place: Any) -> None:
    path = place.folder / "large.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(300, 50_000)), y=rng.integers(0, 3, 300))
    file = place.file(datasets=[{"name": "large", "path": "large.npz", "split": SPLIT}])
    with pytest.raises(ValueError, match=r"114 MiB .*more than the 95 .*--data-stays"):
        shipped(file)
    assert not shipped(file, data_stays=True).data


def test_a_comparison_goes_with_its_studies(place: Any) -> None:
    tune = {"defense": "rounding", "space": {"decimals": [1, 2]}, "attacks": ["gap"], "trials": 9}
    attacks = [{"name": "metric", "statistic": "confidence"}]
    for name in ("one", "two"):
        study = {**place.experiment, "name": name, "tune": tune, "attacks": attacks}
        (place.folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    file = place.text(yaml.safe_dump({"compare": ["one.yaml", "two.yaml"], "trials": 3}))
    sent = shipped(file, tune=True)
    assert set(sent.content) == {"tiny.compare.yaml", "one.yaml", "two.yaml"}
    for name, content in sent.content.items():
        (place.folder / name).write_bytes(content)
    from orchestrator.compare import load_studies

    comparison, studies = load_studies(str(place.folder / sent.file), (), None)
    assert comparison is not None
    assert comparison.name == "tiny"
    assert [(study.name, study.tune and study.tune.trials) for study in studies] == [
        ("one", 3),
        ("two", 3),
    ]
