"""Jobs on a Ray cluster elsewhere: submit, list, follow, stop, through Ray's Jobs API.

What is sent is an archive for the job's folder (`_package.py`), from where job and workers import.
"""

import asyncio
import shlex
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import ray
from aiohttp import ClientError

from cluster._dashboard import Client, JobMissing, TokenRefused, find_address, find_token, told
from cluster.base import ClusterUnreachable

__all__ = ["EXPERIMENT", "MOST_BYTES", "Job", "JobMissing", "Jobs", "TokenRefused", "find_address"]

# Ray's dashboard takes no request above 100 MiB.
MOST_BYTES = 95 * 2**20
EXPERIMENT = "sfumato.experiment"  # metadata that every job of ours has
# What a driver that is stopped may take to write down what it has; Ray's default is 3.
_STOP_WAIT_S = 30
_SILENT_S = 2.0  # after which a log that says nothing is asked about
_AWAY_S = 60.0  # how long a cluster that was there may be away
_OLDEST_PYTHON = (3, 11)

Status = Literal["pending", "running", "stopped", "succeeded", "failed"]


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        id: what it was submitted as.
        status: of Ray.
        experiment: its name; empty for a job that is not ours.
        started, ended: UTC, None if not yet.
        exit_code: of its process, None if it has none (yet).
        message: what Ray says of it, on one line, without the log.
    """

    id: str
    status: Status
    experiment: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in ("stopped", "succeeded", "failed")


class Jobs:
    """The jobs of one cluster.

    Attributes:
        address: of its dashboard.
        notes: in what the cluster differs from this machine.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: as from `find_address`.

        Raises:
            TokenRefused: saying which token was used, and where one is looked for.
            ClusterUnreachable: if no Ray answers within seconds, or its Python is too old.
        """
        self.address, self.notes = address, list[str]()
        token, self._token_source = find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = Client(address, headers)
        with told(self.address, self._token_source):
            version = self._client.ask("/api/version")["ray_version"]
        if version != ray.__version__:
            self.notes.append(f"the cluster has Ray {version}, this machine {ray.__version__}")
        with suppress(Exception):  # a page for people, which other versions may not have
            python = str(self._client.ask("/api/v0/cluster_metadata")["data"]["pythonVersion"])
            self._compare_python(python)

    def submit(
        self,
        command: Sequence[str],
        *,
        name: str,
        archive: Path,
        wheel: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Send what a job brings along, and start it.

        Args:
            command: the words of its command. A leading `~/` is the home folder there.
            name: of the experiment, a part of the id.
            archive: a zip, unpacked into the job's folder on every node.
            wheel: installed on every node, by pip.
            metadata: shown to whoever may list jobs, so no secrets.

        Returns:
            Its id, the name and the time.

        Raises:
            TokenRefused, ClusterUnreachable: as on connecting, and if it is not taken.
            ValueError: if the archive is too large to be sent.
        """
        size = archive.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(
                f"what is to be sent has {size / 2**20:.0f} MiB, more than the {MOST_BYTES >> 20} "
                "that Ray takes; put data where every node sees them"
            )
        env: dict[str, Any] = {
            "working_dir": str(archive),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
        }
        if wheel is not None:
            env["py_modules"] = [str(wheel)]
        base = job_id = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        for number in range(2, 100):
            try:
                with told(self.address, self._token_source):
                    self._client.submit_job(
                        # Without exec the shell would be ended first, and its code be the job's.
                        entrypoint="exec " + " ".join(map(_quoted, command)),
                        submission_id=job_id,
                        runtime_env=env,
                        metadata={**(metadata or {}), EXPERIMENT: name},
                    )
                return job_id
            except ClusterUnreachable as error:
                if "already exists" not in str(error):
                    raise
            job_id = f"{base}-{number}"
        raise ClusterUnreachable(f"the cluster at {self.address} has every id like {base} already")

    def all(self) -> list[Job]:
        """Our jobs, the newest first."""
        with told(self.address, self._token_source):
            found = [_job(each) for each in self._client.list_jobs() if each.submission_id]
        ours = [job for job in found if job.experiment]
        long_ago = datetime.fromtimestamp(0, UTC)
        return sorted(ours, key=lambda job: (job.started or long_ago, job.id), reverse=True)

    def get(self, job_id: str) -> Job:
        with told(self.address, self._token_source):
            return _job(self._client.get_job_info(job_id))

    def find(self, given: str | None, *, running: bool = False) -> Job:
        """The job that is meant by the beginning of its id, or without one.

        Args:
            given: an id or its beginning; None means the one that runs, or else the last one.
            running: without an id, only one that is not over.

        Raises:
            JobMissing: if none is meant, or more than one.
        """
        ours = self.all()
        if given is None:
            found = [job for job in ours if not job.over] or ([] if running else ours[:1])
            what = "running job of ours" if running else "job of ours"
        else:
            found = [job for job in ours if job.id == given]
            found = found or [job for job in ours if job.id.startswith(given)]
            what = f"job of ours whose id begins with {given!r:.100}"
        if not found:
            raise JobMissing(f"there is no {what} at {self.address}; `sfumato jobs` lists them")
        if len(found) > 1:
            some = ", ".join(job.id for job in found[:10]) + (", …" if len(found) > 10 else "")
            raise JobMissing(f"there is more than one {what}: {some}; say which")
        return found[0]

    def log(self, job_id: str) -> str:
        with told(self.address, self._token_source):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What a job says, from its beginning until it is over, over lost connections too."""
        num_told = 0
        loop = asyncio.new_event_loop()
        try:
            while True:
                position = 0
                for chunk in self._tail(loop, job_id):
                    position += len(chunk)
                    if position > num_told:
                        yield chunk[len(chunk) - (position - num_told) :]
                        num_told = position
                if self._over_soon(job_id):
                    break
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        with suppress(ClusterUnreachable):
            if rest := self.log(job_id)[num_told:]:
                yield rest

    def stop(self, job_id: str) -> Job:
        """Ask a job to stop, and wait until it has.

        Raises:
            ClusterUnreachable: also if it has not after twice the time that it is given.
        """
        with told(self.address, self._token_source):
            self._client.stop_job(job_id)
        until = time.monotonic() + 2 * _STOP_WAIT_S
        while not (job := self.get(job_id)).over:
            if time.monotonic() > until:
                raise ClusterUnreachable(
                    f"job {job_id} was asked to stop and is {job.status} after {2 * _STOP_WAIT_S} "
                    "s; ask again, or look at the head's dashboard"
                )
            time.sleep(0.3)
        return job

    def _tail(self, loop: asyncio.AbstractEventLoop, job_id: str) -> Iterator[str]:
        """The log from its beginning until the connection ends."""
        stream = self._client.tail_job_logs(job_id)
        while True:
            task = loop.create_task(_next(stream))
            try:
                # A connection that is cut on the way says nothing.
                while not loop.run_until_complete(asyncio.wait({task}, timeout=_SILENT_S))[0]:
                    with suppress(ClusterUnreachable):
                        if self.get(job_id).over:
                            return
            finally:
                if task.cancel():
                    loop.run_until_complete(asyncio.wait({task}))
            if (chunk := task.result()) is None:
                return
            yield chunk

    def _over_soon(self, job_id: str) -> bool:
        """Whether a job is over whose log has ended; its status comes a moment later."""
        began = time.monotonic()
        while True:
            try:
                if self.get(job_id).over:
                    return True
                if time.monotonic() - began > 2:
                    return False
            except TokenRefused:
                raise
            except ClusterUnreachable:
                if time.monotonic() - began > _AWAY_S:
                    raise
            time.sleep(0.5)

    def _compare_python(self, version: str) -> None:
        here = ".".join(map(str, sys.version_info[:2]))
        theirs = tuple(int(part) for part in version.split(".")[:2])
        if theirs < _OLDEST_PYTHON:
            self.notes.append(
                f"the cluster has Python {version}, Sfumato needs {_OLDEST_PYTHON[0]}."
                f"{_OLDEST_PYTHON[1]} or newer: the job will fail unless --python names another"
            )
        elif theirs != sys.version_info[:2]:
            self.notes.append(f"the cluster has Python {version}, this machine {here}")


def _quoted(word: str) -> str:
    home = "~/" if word.startswith("~/") else ""
    return home + shlex.quote(word.removeprefix(home))


async def _next(stream: AsyncIterator[str]) -> str | None:
    try:
        return str(await anext(stream))
    except (StopAsyncIteration, ClientError, OSError, RuntimeError):
        return None


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    message, _, _ = (details.message or "").partition(", last available logs")
    return Job(
        id=details.submission_id,
        status=details.status.value.lower(),
        experiment=metadata.get(EXPERIMENT, ""),
        started=_when(details.start_time),
        ended=_when(details.end_time),
        exit_code=details.driver_exit_code,
        message=" ".join(message.split()),
        metadata=metadata,
    )


def _when(ms: int | None) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
