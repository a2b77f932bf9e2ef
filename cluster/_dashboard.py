"""The dashboard of a Ray cluster: where it is, with which token, and what to say if it refuses."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.base import ClusterUnreachable

__all__ = ["Client", "JobMissing", "TokenRefused", "find_address", "find_token", "told"]

_CONNECT_S, _ANSWER_S, _UPLOAD_S = 5.0, 10.0, 300.0
_SOURCES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


class TokenRefused(ClusterUnreachable):
    """The cluster wants another token, or one at all."""


class JobMissing(ValueError):
    """No job, or more than one, is meant by an id."""


def find_address(given: str | None) -> str:
    """The address of a cluster's dashboard: the one given, or that of the environment.

    Raises:
        ValueError: if there is none, or it is none of a dashboard.
    """
    places = {"--address": given}
    places |= {name: os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    source, value = next(((source, value) for source, value in places.items() if value), ("", ""))
    if not value:
        raise ValueError(
            "no cluster is named: give --address http://HOST:8265, the dashboard of its head, or "
            "set RAY_API_SERVER_ADDRESS"
        )
    remedy = "write http://HOST:8265, the dashboard of the cluster's head"
    if "@" in value:  # not quoted: what is before it may be a password
        raise ValueError(f"{source} holds a user or a password; {remedy}, and the token elsewhere")
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        sound = sound and value != "auto" and not parts.query and not parts.fragment
    except ValueError:
        sound = False
    if not sound or not value.isprintable() or " " in value:
        raise ValueError(f"{source} is {value!r:.300}; {remedy}")
    return parts.geturl().rstrip("/")


class Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which goes where it is told to and does not wait for ever.

    Its own `__init__` has RAY_ADDRESS overrule the address it is given, and its requests have no
    time limit.
    """

    def __init__(self, address: str, headers: dict[str, str]) -> None:
        for name in ("dashboard_sdk", "job.sdk"):  # they tell every upload
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        SubmissionClient.__init__(self, address=address, headers=headers)
        self._client_ray_version = ray.__version__

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        answer_s = _ANSWER_S if endpoint == "/api/version" else _UPLOAD_S
        options.setdefault("timeout", (_CONNECT_S, answer_s))
        return super()._do_request(method, endpoint, **options)

    def ask(self, endpoint: str) -> Any:
        answer = self._do_request("GET", endpoint)
        answer.raise_for_status()
        return answer.json()


def find_token() -> tuple[str | None, str]:
    """The token as Ray looks for it, and in words which it is.

    Raises:
        ClusterUnreachable: if there is one that cannot be one. It is not quoted.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None, "no token was sent, as RAY_AUTH_MODE is disabled"
    default = Path.home() / ".ray" / "auth_token"
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        source = "RAY_AUTH_TOKEN"
    elif named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        source = f"the file {named} (RAY_AUTH_TOKEN_PATH)"
        token = _read(Path(named), source)
    elif default.is_file():
        source = f"the file {default}"
        token = _read(default, source)
    else:
        return None, f"we have no token (looked for {_SOURCES})"
    if not token.isascii() or not token.isprintable() or " " in token:
        raise TokenRefused(f"{source} holds no token: it has spaces or other such characters")
    return token, f"the token of {source} is not its token"


def _read(path: Path, source: str) -> str:
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise TokenRefused(f"{source} cannot be read: {why}") from error
    if not token:
        raise TokenRefused(f"{source} is empty; `ray get-auth-token` on the head prints the token")
    return token


@contextmanager
def told(address: str, token_source: str) -> Iterator[None]:
    """Errors of Ray's client as ours."""
    try:
        yield
    except AuthenticationError as error:
        raise TokenRefused(
            f"the cluster at {address} refused us: {token_source}. Set "
            f"RAY_AUTH_MODE=token and put the cluster's token into {_SOURCES} "
            "(`ray get-auth-token` on the head prints it)"
        ) from error
    except (OSError, KeyError, TypeError) as error:
        raise ClusterUnreachable(_silent(address, error)) from error
    except (RuntimeError, ValueError) as error:
        said = str(error).strip()
        if not said.startswith("Request failed with status code"):
            raise ClusterUnreachable(_silent(address, error)) from error
        if re.search(r"code 404: Job \S+ does not exist", said):
            raise JobMissing(f"{said.partition(': ')[2]} (at {address})") from error
        last = said.rstrip(".").rpartition("\n")[2] or said
        raise ClusterUnreachable(f"the cluster at {address} says: {last[-500:]}") from error


def _silent(address: str, error: Exception) -> str:
    text = str(error)
    if "imed out" in text or "imeout" in type(error).__name__:
        why = "no answer in time"
    elif found := re.search(r"\[Errno -?\d+\] ([^'\")(]+)", text):
        why = found[1].strip()
    else:
        what = " ".join(text.split())[:200]
        why = f"what answers is no Ray dashboard ({type(error).__name__}: {what})"
    return (
        f"no cluster answers at {address}: {why}. Is it the dashboard of the head (port "
        "8265 unless chosen; 6379 is another), does it listen beyond its own machine "
        "(`ray start --head --dashboard-host`) or through a tunnel (`ssh -L "
        "8265:localhost:8265 HEAD`), and does a firewall let this machine through?"
    )
