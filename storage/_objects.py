"""Files below an URI: read, written whole, listed and removed, with faults told in one line."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from storage._disk import StoreUnwritable, draft_name

__all__ = ["Objects", "Stat", "check_uri", "each"]

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
# What an S3 address may say; a key or a token is none of it.
_S3 = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "force_virtual_addressing")
_SECRET = re.compile(r"(?i)secret|token|passw|access_key|account_key|signature|^sig$")
# Three attempts of six seconds: a server that takes connections and says nothing is told after
# some 20 s, one that refuses them at once.
_ANSWER_S, _CONNECT_S, _ATTEMPTS = 6, 5, 3
_PAUSE_S = 30.0  # whoever winds up after a timeout is not to wait for one again and again
_THREADS = 16
# One request writes a whole object there. Elsewhere a file grows where readers see it.
_WHOLE = ("s3", "gcs", "abfs")

Item = TypeVar("Item")
Got = TypeVar("Got")


@dataclass(frozen=True)
class Stat:
    """What a listing says of a file: bytes, and nanoseconds since 1970 of its last change."""

    size: int
    mtime_ns: int


def each(function: Callable[[Item], Got], items: Iterable[Item]) -> list[Got]:
    """`function` of all items, several at a time: most of a request's time is waiting."""
    todo = list(items)
    if len(todo) < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(min(_THREADS, len(todo))) as pool:
        futures = [pool.submit(function, item) for item in todo]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the rest would fail alike
            raise


def check_uri(uri: str) -> str:
    """The address of a store, without a slash at its end; asks no server.

    Raises:
        ValueError: its scheme is not known, it names no place, or it holds a secret.
    """
    try:
        parts = urlsplit(uri)
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, at, _ = parts.netloc.rpartition("@")
    except ValueError:  # its text may hold a part of a secret
        raise ValueError(f"{_shown(uri)} is no address of a store") from None
    if not uri.isprintable() or parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(
            f"{_shown(uri)} is no address of a store; name a folder, or one of {known}"
        )
    # A container's name stands before an @ in Azure's addresses, and a user in Hadoop's.
    named = at and ":" not in user and parts.scheme in ("abfs", "abfss", "hdfs", "viewfs")
    within = any("@" in value for value in asked.values())
    if (at and not named) or within or any(map(_SECRET.search, asked)):
        raise ValueError(
            f"'{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}' is given with a "
            "secret, which logs and lists of processes would show. Write it without, and set "
            f"{_credentials(parts.scheme)} in the environment, on every node"
        )
    if parts.scheme == "s3" and (odd := [name for name in asked if name not in _S3]):
        raise ValueError(f"{_shown(uri)}: {odd[0]!r} is unknown; it may say {', '.join(_S3)}")
    if parts.fragment or not (parts.path.strip("/") if parts.scheme == "file" else parts.netloc):
        what = "a folder" if parts.scheme == "file" else "a bucket or host, as in s3://BUCKET/NAME"
        raise ValueError(f"{_shown(uri)} names no place of a store; it needs {what}")
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def _shown(uri: str) -> str:
    """An address that is refused, without what may be a secret in it."""
    bare = re.sub(r"[?#].*", "", uri, flags=re.DOTALL)
    return repr(re.sub(r"//.*@", "//***@", bare, flags=re.DOTALL))[:300]


def _credentials(scheme: str) -> str:
    if scheme.startswith("abfs"):
        return "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
    if scheme.startswith("g"):
        return "GOOGLE_APPLICATION_CREDENTIALS"
    if scheme == "s3":
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return "what the file system asks for"


class Objects:
    """The files below an URI, by names relative to it.

    Every method raises `StoreUnwritable` if the server is away or refuses.
    """

    def __init__(self, uri: str, filesystem: Any = None) -> None:
        """Open it.

        Args:
            uri: as `check_uri` gives it.
            filesystem: a filesystem of pyarrow to use instead of the one the URI names.
        """
        self.uri = uri
        self._away: tuple[float, str] | None = None  # when a timeout was told, and how
        with self._telling():
            self._files, self._base = _opened(uri)
        self._files = self._files if filesystem is None else filesystem
        self._whole = self._files.type_name in _WHOLE

    def check(self) -> None:
        """Ask whether the server answers and the bucket, if there are such, exists.

        Raises:
            StoreUnwritable: no.
        """
        if not self._whole:
            return
        from pyarrow.fs import FileType

        bucket = self._base.partition("/")[0]
        with self._telling():
            found = self._files.get_file_info(bucket)
            if found.type == FileType.NotFound:
                raise OSError(f"there is no bucket '{bucket}'")
            # A wrong key may ask whether a bucket exists, and nothing else.
            self._files.get_file_info(f"{self._base}/upstream.json")

    def read(self, name: str) -> bytes:
        """The content of a file; raises FileNotFoundError if there is none."""
        with self._telling(), self._files.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write or replace a file, which readers see whole or not at all."""
        path = self._path(name)
        with self._telling():
            if self._whole:
                with self._files.open_output_stream(path) as stream:
                    stream.write(data)
                return
            folder = path.rpartition("/")[0]
            draft = f"{folder}/{draft_name()}"
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(draft) as stream:
                stream.write(data)
            self._files.move(draft, path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._telling(), suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove all files below `name`."""
        with self._telling(), suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def stat(self, name: str) -> Stat | None:
        """Size and age of a file, or None if there is none."""
        with self._telling():
            info = self._files.get_file_info(self._path(name))
        return _stat(info) if info.is_file else None

    def has_folder(self, name: str) -> bool:
        """Whether there is any file below `name`."""
        with self._telling():
            info = self._files.get_file_info(self._path(name))
        return bool(info.type.name == "Directory")

    def listing(self, folder: str) -> dict[str, Stat]:
        """All files below `folder`, by names relative to the URI; one request a thousand."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        for again in (True, True, False):
            try:
                with self._telling():
                    infos = self._files.get_file_info(selector)
                break
            except FileNotFoundError:  # a real folder was made or removed while it was listed
                if not again:
                    raise
        start = len(self._base) + 1
        return {
            info.path[start:]: _stat(info)
            for info in infos
            if info.is_file and not info.base_name.startswith(".draft-")
        }

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        began = time.monotonic()
        if self._away is not None and began - self._away[0] < _PAUSE_S:
            raise StoreUnwritable(self._away[1])
        try:
            yield
            self._away = None
        except (FileNotFoundError, StoreUnwritable):
            raise
        # pyarrow's: of servers, of addresses (ArrowInvalid), of schemes it was built without.
        except (OSError, ValueError, NotImplementedError) as error:
            scheme = self.uri.partition(":")[0]
            bucket = "that the bucket exists, " if scheme == "s3" else ""
            told = (
                f"the store at {self.uri} cannot be used: {_said(error)}. Check the address, its "
                f"endpoint, {bucket}and the credentials ({_credentials(scheme)}); what is "
                "finished is kept, and the same command goes on from there"
            )
            if time.monotonic() - began > _ANSWER_S:
                self._away = time.monotonic(), told
            raise StoreUnwritable(told) from error


def _said(error: Exception) -> str:
    """What a server or a library said, in one line and without what it was asked."""
    text = str(error).strip().split("\n")[0]
    text = re.sub(r"^When [^:]*: ", "", text)
    text = re.sub(r" \(Request ID: .*?\)", "", text)
    text = re.sub(r"^.*curlCode: \d+, [^;]*; Details: ", "", text)
    return text[:300].rstrip(". ")


def _stat(info: Any) -> Stat:
    return Stat(int(info.size), int(info.mtime_ns or 0))


def _opened(uri: str) -> tuple[Any, str]:
    """The filesystem that an URI names, and the path in it."""
    from pyarrow import fs

    parts = urlsplit(uri)
    if parts.scheme != "s3":
        files, base = fs.FileSystem.from_uri(uri)
        return files, str(base).rstrip("/")
    asked: dict[str, Any] = dict(parse_qsl(parts.query))
    # What other tools of S3 understand; pods and jobs are given it more easily than a query.
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named and "endpoint_override" not in asked:
        place = urlsplit(named)
        asked |= {"endpoint_override": place.netloc, "scheme": place.scheme}
    if "force_virtual_addressing" in asked:
        virtual = asked["force_virtual_addressing"].lower()
        asked["force_virtual_addressing"] = virtual in ("1", "true")
    if not asked.keys() & {"region", "endpoint_override"}:  # of AWS, where each has its region
        asked["region"] = fs.resolve_s3_region(parts.netloc)
    files = fs.S3FileSystem(
        **asked,
        request_timeout=_ANSWER_S,
        connect_timeout=_CONNECT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,  # a small file costs one request, not three
    )
    return files, f"{parts.netloc}{parts.path}".rstrip("/")
