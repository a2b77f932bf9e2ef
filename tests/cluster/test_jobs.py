"""Where a cluster's jobs are, with which token; what goes along; a log over lost connections.

The dashboard here is a small one of our own; tests/orchestrator/test_cli_jobs.py has Ray's.
"""

import asyncio
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import web

from cluster._package import released, source_files, write_wheel, write_zip
from cluster.base import ClusterUnreachable
from cluster.jobs import EXPERIMENT, JobMissing, Jobs, TokenRefused, find_address

TOKEN, OTHER = "t0ken" * 8, "0ther" * 8
PYTHON = ".".join(map(str, sys.version_info[:3]))


@dataclass
class Dashboard:
    """A dashboard as of Ray, as far as jobs are concerned.

    Attributes:
        token: what is asked for, if anything.
        jobs: id -> status.
        lines: the log of every job.
        cut: after how many lines the first connection to a log is lost.
    """

    token: str = ""
    ray_version: str = ray.__version__
    python: str = PYTHON
    page: str = ""
    jobs: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    cut: int | None = None
    connections: int = 0
    url: str = ""

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> Any:
        sent = request.headers.get("Authorization", "")
        if self.token and not sent:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token and sent != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def version(self, request: web.Request) -> web.Response:
        if self.page:
            return web.Response(text=self.page)
        return web.json_response({"ray_version": self.ray_version})

    async def cluster(self, request: web.Request) -> web.Response:
        return web.json_response({"data": {"pythonVersion": self.python}})

    def details(self, job_id: str) -> dict[str, Any]:
        ours = {EXPERIMENT: job_id.partition("-")[0]}
        told = {"type": "SUBMISSION", "submission_id": job_id, "entrypoint": "x", "message": None}
        return {**told, "status": self.jobs[job_id], "metadata": ours, "start_time": 1000}

    async def list(self, request: web.Request) -> web.Response:
        strange = {"type": "SUBMISSION", "submission_id": "x", "entrypoint": "x"}
        listed = [*map(self.details, self.jobs), {**strange, "status": "RUNNING"}]
        return web.json_response(listed)

    async def job(self, request: web.Request) -> web.Response:
        if (job_id := request.match_info["id"]) not in self.jobs:
            return web.Response(status=404, text=f"Job {job_id} does not exist")
        return web.json_response(self.details(job_id))

    async def log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(self.lines)})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        self.connections += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for i, line in enumerate(self.lines):
            if self.connections == 1 and i == self.cut:
                assert request.transport is not None
                request.transport.abort()
                return socket
            await socket.send_str(line)
        self.jobs[request.match_info["id"]] = "SUCCEEDED"
        return socket

    def application(self) -> web.Application:
        made = web.Application(middlewares=[self.guard])
        made.router.add_get("/api/version", self.version)
        made.router.add_get("/api/v0/cluster_metadata", self.cluster)
        made.router.add_get("/api/jobs/", self.list)
        made.router.add_get("/api/jobs/{id}", self.job)
        made.router.add_get("/api/jobs/{id}/logs", self.log)
        made.router.add_get("/api/jobs/{id}/logs/tail", self.tail)
        return made


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    made, loop = Dashboard(), asyncio.new_event_loop()
    runner = web.AppRunner(made.application())

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield made
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no address of who runs the tests."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_address_given_beats_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, dashboard: Dashboard
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert find_address(None) == "http://127.0.0.1:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2/")
    assert find_address(None) == "http://127.0.0.1:2"
    assert find_address("head:8265") == "http://head:8265"
    assert find_address("https://head/ray/") == "https://head/ray"
    assert Jobs(find_address(dashboard.url)).all() == []  # which Ray's client would overrule


@pytest.mark.parametrize(
    "given",
    ["auto", "ray://head:10001", "http://", "http://h:99999", "http://h:0", "a b", "s3://x"],
)
def test_what_is_no_dashboard_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="write http://HOST:8265") as error:
        find_address(given)
    assert repr(given) in str(error.value)


def test_no_address_and_a_secret_one_are_refused() -> None:
    with pytest.raises(ValueError, match="--address http://HOST:8265"):
        find_address(None)
    with pytest.raises(ValueError, match="--address holds a user or a password") as error:
        find_address("http://ann:s3cret@head:8265")
    assert "s3cret" not in str(error.value)


def test_the_token_is_looked_for_as_ray_does(
    monkeypatch: pytest.MonkeyPatch, dashboard: Dashboard, tmp_path: Path
) -> None:
    dashboard.token = TOKEN
    with pytest.raises(TokenRefused, match="we have no token"):
        Jobs(dashboard.url)
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text(f"{TOKEN}\n")
    Jobs(dashboard.url)
    named = tmp_path / "named"
    named.write_text(OTHER)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    with pytest.raises(TokenRefused, match=r"named \(RAY_AUTH_TOKEN_PATH\) is not its token"):
        Jobs(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    Jobs(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(TokenRefused, match="RAY_AUTH_MODE is disabled"):
        Jobs(dashboard.url)


def test_a_refusal_says_where_and_what_to_do_but_not_the_token(
    monkeypatch: pytest.MonkeyPatch, dashboard: Dashboard
) -> None:
    dashboard.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", OTHER)
    with pytest.raises(TokenRefused) as error:
        Jobs(dashboard.url)
    said = str(error.value)
    for part in (dashboard.url, "RAY_AUTH_TOKEN is not its token", "ray get-auth-token"):
        assert part in said
    assert OTHER not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"", "is empty"), (b"a\nb", "holds no token"), (b"\xff", "no text")],
)
def test_a_file_without_a_token_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(TokenRefused, match=why) as error:
        Jobs("http://127.0.0.1:1")
    assert str(path) in str(error.value)


def test_nobody_there_and_somebody_else_are_told(dashboard: Dashboard) -> None:
    with pytest.raises(ClusterUnreachable, match=r"127.0.0.1:1: Connection refused.*8265"):
        Jobs("http://127.0.0.1:1")
    dashboard.page = "<html>a printer</html>"
    with pytest.raises(ClusterUnreachable, match="what answers is no Ray dashboard"):
        Jobs(dashboard.url)
    with pytest.raises(ClusterUnreachable, match=r"Not Found|404"):
        Jobs(f"{dashboard.url}/elsewhere")


@pytest.mark.slow
def test_a_silent_address_is_told_in_seconds() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(ClusterUnreachable, match="no answer in time"):
            Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 20


def test_other_versions_are_told(dashboard: Dashboard) -> None:
    assert Jobs(dashboard.url).notes == []
    dashboard.ray_version, dashboard.python = "2.9.0", "3.10.4"
    one, other = Jobs(dashboard.url).notes
    assert "Ray 2.9.0" in one
    assert ray.__version__ in one
    assert "Python 3.10.4" in other
    assert "--python" in other


def test_a_job_is_meant_by_the_beginning_of_its_id(dashboard: Dashboard) -> None:
    dashboard.jobs = {"a-1": "SUCCEEDED", "a-12": "RUNNING", "b-3": "FAILED"}
    cluster = Jobs(dashboard.url)
    assert [job.id for job in cluster.all()] == ["b-3", "a-12", "a-1"]
    assert cluster.find("b").id == "b-3"
    assert cluster.find("a-1").id == "a-1"  # whole, though another begins so
    assert cluster.find(None).id == "a-12"  # the one that runs
    with pytest.raises(JobMissing, match="a-12, a-1; say which"):
        cluster.find("a")
    with pytest.raises(JobMissing, match="begins with 'x'"):  # there is one, but not of ours
        cluster.find("x")
    dashboard.jobs["a-12"] = "STOPPED"
    assert cluster.find(None).id == "b-3"  # the last
    with pytest.raises(JobMissing, match="no running job"):
        cluster.find(None, running=True)
    with pytest.raises(JobMissing, match="does not exist"):
        cluster.get("gone")


@pytest.mark.parametrize("cut", [None, 0, 3])
def test_a_log_is_told_once_over_a_lost_connection(dashboard: Dashboard, cut: int | None) -> None:
    dashboard.jobs, dashboard.cut = {"a-1": "RUNNING"}, cut
    dashboard.lines = ["one\n", "two\n", "two\n", "three\n"]
    told = "".join(Jobs(dashboard.url).follow("a-1"))
    assert told == "".join(dashboard.lines)
    assert dashboard.connections == (1 if cut is None else 2)


def install(folder: Path, text: str = "X = 1\n") -> metadata.Distribution:
    """A package as pip leaves it, with what a wheel of it must not have."""
    info = folder / "thing-1.0.dist-info"
    for part in (folder / "thing" / "__pycache__", info):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "thing" / "__init__.py").write_text(text)
    (folder / "thing" / "data.yaml").write_text("a: 1\n")
    (folder / "thing" / "__pycache__" / "x.pyc").write_bytes(b"x")
    needs = "Requires-Dist: torch>=2\nProvides-Extra: gpu\nRequires-Dist: y; extra == 'gpu'\n"
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n{needs}\nRequires-Dist: in prose\n"
    )
    (info / "INSTALLER").write_text("pip\n")
    listed = ["thing/__init__.py", "thing/data.yaml", "thing/__pycache__/x.pyc", "../bin/thing"]
    listed += [f"{info.name}/{name}" for name in ("METADATA", "INSTALLER", "RECORD")]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    return metadata.Distribution.at(info)


def test_a_wheel_is_named_by_its_content_and_asks_for_nothing(tmp_path: Path) -> None:
    found = install(tmp_path / "site")
    wheel = write_wheel(tmp_path, found)
    again = write_wheel(tmp_path, found)
    assert wheel == again
    assert write_wheel(tmp_path, install(tmp_path / "site", "X = 2\n")) != wheel
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--target", "there"]
    done = subprocess.run(
        [*command, str(wheel)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "there").rglob("*") if path.suffix != ".pyc"}
    assert {"__init__.py", "data.yaml", "METADATA"} <= files
    assert "x.pyc" not in {path.name for path in (tmp_path / "there" / "thing").iterdir()}
    told = (tmp_path / "there" / "thing-1.0.dist-info" / "METADATA").read_text()
    assert "torch" not in told
    assert "Requires-Dist: in prose" in told


def test_what_is_installed_is_told_from_what_is_developed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site")
    elsewhere = tmp_path / "checkout" / "thing" / "__init__.py"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert released("thing", tmp_path / "site" / "thing" / "__init__.py") is not None
    assert released("thing", elsewhere) is None
    assert released("other", elsewhere) is None


def test_an_archive_has_the_same_bytes_whenever_it_is_made(tmp_path: Path) -> None:
    source = tmp_path / "root"
    install(source)
    (source / "thing" / ".secret").write_text("s")
    content = {**source_files(source, ["thing"], "no such distribution"), "a.yaml": b"a: 1\n"}
    write_zip(tmp_path / "one.zip", content)
    (source / "thing" / "data.yaml").touch()
    write_zip(tmp_path / "two.zip", dict(reversed(content.items())))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.yaml", "thing/__init__.py", "thing/data.yaml"]


def test_what_is_too_large_is_not_sent(dashboard: Dashboard, tmp_path: Path) -> None:
    large = tmp_path / "job.zip"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(ValueError, match=r"200 MiB, more than the 95"):
        Jobs(dashboard.url).submit(["python"], name="a", archive=large)
