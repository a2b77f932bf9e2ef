"""Reaching an MLflow store: addresses, manners, faults in words, what of ours is there."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from storage._sqlite import alone, filled, make, sqlite_file

DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")

_ANSWER_S = 5
# MLflow's defaults retry for minutes, obey a server's Retry-After, report usage to its makers and
# print a link for each run, and it logs the errors that we report ourselves. It reads these when
# imported or asked; a person's own setting wins.
# No retries at all: a create_run repeated after a lost answer would double a run.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_ANSWER_S),
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}
_SECRET = re.compile(
    r"(?i)([?&;][^=&\s]*(?:pass|pwd|token|secret|key|sig|cred|odbc)[^=&\s]*=)[^&\s]+"
)
_PREFIX = "sfumato/"
_PAGE = 500


class TrackingAway(RuntimeError):
    """MLflow did not take or give the rows; they stay in the tables and can be sent later."""


def default_uri(store: Path) -> str:
    """The SQLite file MLflow uses when no server is named, inside the store."""
    return f"sqlite:///{store.resolve()}/mlflow.db"


def mlflow_experiment(experiment: str) -> str:
    """Our experiment's name in MLflow, where experiments of others may live beside it."""
    return _PREFIX + experiment


def masked(uri: str) -> str:
    """The address without user, password and secret query values, fit to be shown and kept."""
    if uri.startswith("sqlite:"):
        return uri
    if "://" not in uri and not re.search(r"\s", uri):  # mistyped, as user:password@host
        return re.sub(r"^.*@", "***@", uri)
    # Up to the last @: a password typed unescaped may itself hold an @, a / or a ?.
    return _SECRET.sub(r"\1***", re.sub(r"(?s)://.*@", "://***@", uri))


def be_polite() -> None:
    """Tell MLflow how to behave; before it is imported."""
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)


def connect(uri: str, *, create: bool = True) -> Any:
    """An MLflow client for an address that is known to answer if it is a database.

    Args:
        uri: an MLflow server, or a database URL that MLflow takes.
        create: make a SQLite file that is not there; otherwise it is a FileNotFoundError.
    """
    be_polite()
    path = sqlite_file(uri)
    if path is not None:
        # A pooled connection would go on writing to a damaged file that was moved away.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        if not create and not filled(path):
            raise FileNotFoundError(f"{path} does not exist")
    elif DATABASE.match(uri):
        _probe(uri)
    from mlflow import MlflowClient

    # Also where something else imported MLflow before it could read our manners.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with alone(path) if path is not None and create else nullcontext():
        if path is not None:
            if not filled(path) and not path.is_dir():
                make(path)
            _probe(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _probe(uri: str) -> None:
    """Ask a database once; MLflow asks one that refuses 15 times, for almost an hour."""
    import sqlalchemy

    backend = sqlalchemy.make_url(uri).get_backend_name()
    limit = "connect_timeout" if backend in ("postgresql", "mysql") else "timeout"
    engine = sqlalchemy.create_engine(uri, connect_args={limit: _ANSWER_S})
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def reason(error: BaseException, uri: str) -> str:
    """One line saying what went wrong, without credentials."""
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the Python package '{error.name}', which is not installed"
    cause = error
    link: BaseException | None = error
    while link is not None:
        # MLflow wraps "connection refused" in four layers of text; the innermost says it best.
        # What a database driver said is in SQLAlchemy's `orig`.
        if isinstance(link, OSError):
            cause = link
        elif isinstance(said := getattr(link, "orig", None), BaseException):
            cause = said
        link = link.__cause__ or link.__context__
    text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    credentials = re.search(r"(?s)://(.*)@", uri)
    if credentials is not None and not uri.startswith("sqlite:"):
        for secret in (credentials[1], *credentials[1].split(":", 1)[1:]):
            for form in (secret, unquote(secret)):
                text = text.replace(form, "***") if form else text
    return masked(text)[:300].rstrip(". ")


def our_experiments(client: Any) -> list[tuple[str, str]]:
    """The names and MLflow's ids of our experiments, by name."""
    found, token = [], None
    while True:
        page = client.search_experiments(
            filter_string=f"name LIKE '{_PREFIX}%'", page_token=token, max_results=_PAGE
        )
        found += page
        token = page.token
        if not token:
            return sorted((one.name.removeprefix(_PREFIX), one.experiment_id) for one in found)


def all_runs(
    client: Any,
    experiment_ids: Sequence[str],
    where: str = "",
    order: Sequence[str] = (),
    *,
    limit: int | None = None,
) -> list[Any]:
    """Runs that are not deleted, in MLflow's order; all of them, or the first `limit`."""
    found: list[Any] = []
    token = None
    while True:
        num = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = client.search_runs(
            list(experiment_ids), where, max_results=num, order_by=list(order), page_token=token
        )
        found += page
        token = page.token
        if not token or len(found) == limit:
            return found
