"""How tests share the machine when several run at once, and the servers that some of them need.

`pytest -n 2 --dist loadgroup` is how several run at once.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest


def pytest_configure() -> None:
    """Without a terminal there is no width, though xdist tells its workers one of 80 columns."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run one after another, as each takes all cores; S3 is started once."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif "s3" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("s3"))


@dataclass
class Postgres:
    """A PostgreSQL server on loopback that lets in one user, with a password.

    Attributes:
        programs: the folder of initdb and pg_ctl.
        folder: where its data are, of the system user `owner`.
        owner: who runs it, as root may not; None for who runs the tests.
    """

    programs: Path
    folder: Path
    owner: str | None
    port: int = 0
    databases: int = 0
    user = "ann"
    password = "s3cret/of@ann"  # has to be quoted in an address

    def uri(self, database: str = "postgres", password: str = password) -> str:
        return f"postgresql://{self.user}:{quote(password, safe='')}@{self.place}/{database}"

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self.owner:
            shutil.chown(self.folder, self.owner)
            shutil.chown(secret, self.owner)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={self.user}"]
        self._call("initdb", *options, "--locale=C", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        """Start it, on the port it had if there was one."""
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port = probe.getsockname()[1]
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += f" -c unix_socket_directories={self.folder}"
        log = str(self.folder / "server.log")
        self._call("pg_ctl", "start", "--wait", "--timeout=60", f"--log={log}", f"-o {options}")

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "--wait", "--mode=fast")

    def new_database(self) -> str:
        """The address of a database that is empty."""
        import psycopg

        self.databases += 1
        name = f"test{self.databases}"
        with psycopg.connect(self.uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.uri(name)

    def _call(self, program: str, *options: str) -> None:
        # The server would keep a pipe open, so what is said goes to a file.
        with open(self.folder / f"{program}.log", "w+") as log:
            ended = subprocess.run(
                [str(self.programs / program), f"--pgdata={self.folder / 'data'}", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                user=self.owner,
                extra_groups=[] if self.owner else None,
                check=False,
            )
            log.seek(0)
            assert ended.returncode == 0, log.read()


def _postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian has it beside the search path, by version."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; a test that stops it starts it again."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb in PATH or /usr/lib/postgresql/*/bin")
    owner = None
    if os.geteuid() == 0:
        import pwd

        owner = "postgres" if "postgres" in {user.pw_name for user in pwd.getpwall()} else "nobody"
    # Not in pytest's folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="sfumato-postgres-"))
    made = Postgres(programs, folder, owner)
    try:
        made.make()
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class S3:
    """An S3 server on loopback; what it holds is gone when it ends.

    Attributes:
        port: where it listens.
        buckets: how many were made.
    """

    port: int
    buckets: int = 0

    def new_bucket(self) -> str:
        """The name of a bucket that is empty."""
        from pyarrow.fs import S3FileSystem

        self.buckets += 1
        name = f"bucket{self.buckets}"
        place, region = f"127.0.0.1:{self.port}", "us-east-1"
        files = S3FileSystem(
            endpoint_override=place, scheme="http", region=region, allow_bucket_creation=True
        )
        files.create_dir(name)
        return name

    def uri(self, bucket: str, port: int | None = None) -> str:
        """The address of a store in a bucket, by way of another port if one is given."""
        query = f"endpoint_override=127.0.0.1:{port or self.port}&scheme=http&region=us-east-1"
        return f"s3://{bucket}/store?{query}"

    def new_uri(self) -> str:
        """The address of a store in a bucket of its own."""
        return self.uri(self.new_bucket())


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server, and credentials for it in the environment; tests share it, not its buckets."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile("w+") as out:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "ann")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            said = ""
            while not (found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", said)):
                line = server.stderr.readline()
                assert line, f"the S3 server did not start: {said}"
                said += line
            # It goes on telling every request; nobody reading would stop it.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield S3(int(found[1]))
        finally:
            server.kill()
            server.wait()
