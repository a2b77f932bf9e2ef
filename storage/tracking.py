"""MLflow as a view of the result tables: rows become runs, and can always be sent again."""

import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

__all__ = [
    "PARAM_COLUMNS",
    "Identity",
    "Tracker",
    "TrackingAway",
    "default_uri",
    "masked",
    "mlflow_experiment",
]

PARAM_COLUMNS = frozenset(
    {
        *("dataset", "dataset_hash", "seed", "architecture", "judge", "label", "preset"),
        *("defense", "defense_params", "attack", "attack_params", "threat_model", "adaptive"),
        *("noise_policy", "flags", "device", "worker"),
    }
)
_TAG_COLUMNS = frozenset({"task_key", "experiment"})
_PARAM_LENGTH = 6000  # MLflow's limit, since 2.9
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
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")
_SECRET = re.compile(r"(?i)([?&;][^=&\s]*(?:pass|pwd|token|secret|key|sig|cred)[^=&\s]*=)[^&\s]+")

Identity = tuple[str, str]


class TrackingAway(RuntimeError):
    """MLflow did not take the rows; they stay in the tables and can be sent later."""


def default_uri(store: Path) -> str:
    """The SQLite file MLflow uses when no server is named, inside the store."""
    return f"sqlite:///{store.resolve()}/mlflow.db"


def mlflow_experiment(experiment: str) -> str:
    """Our experiment's name in MLflow, where experiments of others may live beside it."""
    return f"sfumato/{experiment}"


def masked(uri: str) -> str:
    """The address without user, password and secret query values, fit to be shown and kept."""
    if uri.startswith("sqlite:"):
        return uri
    # Up to the last @: a password typed unescaped may itself hold an @, a / or a ?.
    return _SECRET.sub(r"\1***", re.sub(r"(?s)://.*@", "://***@", uri))


class Tracker:
    """Sends result rows to one MLflow store; use it from one thread at a time.

    Each experiment of ours is an MLflow experiment with a parent run (tag `sfumato.kind` is
    "parent") and a child run per row, told apart by the tags `sfumato.task_key` and
    `sfumato.label`. A child that was begun but not finished is completed by the next send.

    Args:
        uri: an MLflow server (http, https) or a database URL that MLflow takes.
        artifact_root: where artifacts go if `uri` is a database; a server has its own place.
    """

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self.uri = uri
        self.artifact_root = artifact_root
        self._client: Any = None
        self._experiments: dict[str, _Experiment] = {}

    def send(
        self,
        experiment: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        experiment_params: Mapping[str, Any] = {},
    ) -> int:
        """Send the rows that MLflow does not have yet.

        What MLflow holds of an experiment is asked once and remembered.

        Args:
            experiment: our experiment's name.
            rows: result rows, column -> value, each with `task_key` and `label`. `PARAM_COLUMNS`,
                texts, booleans, timestamps and lists become params (cut at MLflow's limit), other
                finite numbers metrics; None, NaN, infinite and empty values are left out.
            experiment_params: params of the parent run. MLflow never overwrites a param, so a
                later value goes to the tag `sfumato.latest.<name>`.

        Returns:
            The number of child runs created.

        Raises:
            ValueError: if a row has no `task_key` or `label`; nothing has been sent then.
            TrackingAway: if MLflow is away or refuses. An MLflow that does not answer costs
                seconds, not minutes. Rows before the failing one may have been sent; sending
                all of them again is harmless.
        """
        children = [_Child.of(experiment, row) for row in rows]
        if not children:
            return 0
        try:
            if self._client is None:
                self._client = _connect(self.uri)
            if experiment not in self._experiments:
                root = self.artifact_root if _DATABASE.match(self.uri) else None
                self._experiments[experiment] = _Experiment(self._client, experiment, root)
            params = {name: _text(value) for name, value in experiment_params.items()}
            return self._experiments[experiment].send(children, params)
        except Exception as error:
            # Whatever MLflow, its HTTP client or its database driver raise, the rows wait. The
            # chain is cut because the cause's text may hold the password.
            self._experiments.pop(experiment, None)  # what MLflow holds is now uncertain
            raise TrackingAway(
                f"MLflow at {masked(self.uri)} did not take the rows: {_reason(error, self.uri)}. "
                "Start the server or correct the address; `sfumato run` again sends what waits"
            ) from None


class _Experiment:
    """One experiment in MLflow and what it holds."""

    def __init__(self, client: Any, experiment: str, artifact_root: Path | None) -> None:
        self.client = client
        self.experiment_id = _experiment_id(client, experiment, artifact_root)
        self.finished: set[Identity] = set()
        self.begun: dict[Identity, Any] = {}
        parents = []
        token = None
        while True:
            runs = client.search_runs([self.experiment_id], max_results=500, page_token=token)
            for run in runs:
                tags = run.data.tags
                identity = (tags.get("sfumato.task_key", ""), tags.get("sfumato.label", ""))
                if tags.get("sfumato.kind") == "parent":
                    parents.append(run)
                elif tags.get("sfumato.kind") == "row" and run.info.status == "FINISHED":
                    self.finished.add(identity)
                elif tags.get("sfumato.kind") == "row":
                    self.begun[identity] = run
            token = runs.token
            if not token:
                break
        if not parents:
            tags = {"sfumato.experiment": experiment, "sfumato.kind": "parent"}
            parents = [client.create_run(self.experiment_id, tags=tags, run_name=experiment)]
        # Two drivers that start at once may have made one each: both then use the older.
        parent = min(parents, key=lambda run: (run.info.start_time, run.info.run_id))
        self.parent_id = parent.info.run_id
        self.parent_finished = parent.info.status == "FINISHED"
        self.parent_params = dict(parent.data.params)
        self.parent_tags = dict(parent.data.tags)

    def send(self, children: Sequence["_Child"], params: Mapping[str, str]) -> int:
        self._describe_parent(params)
        num_created = 0
        for child in children:
            if child.identity in self.finished:
                continue
            run = self.begun.pop(child.identity, None)
            if run is not None and not run.data.params.items() <= child.params.items():
                self.client.delete_run(run.info.run_id)  # a recomputed row; params cannot change
                run = None
            if run is None:
                tags = {**child.tags, "mlflow.parentRunId": self.parent_id}
                run = self.client.create_run(
                    self.experiment_id, child.start_ms, tags=tags, run_name=child.name
                )
                num_created += 1
            child.fill(self.client, run.info.run_id)
            self.finished.add(child.identity)
        if num_created or not self.parent_finished:
            self.client.set_terminated(self.parent_id)
            self.parent_finished = True
        return num_created

    def _describe_parent(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        new = {name: text for name, text in params.items() if name not in self.parent_params}
        later = {}
        for name, text in params.items():
            tag = f"sfumato.latest.{name}"
            if self.parent_tags.get(tag, self.parent_params.get(name, text)) != text:
                later[tag] = text
        if new or later:
            self.client.log_batch(
                self.parent_id,
                params=[Param(name, text) for name, text in new.items()],
                tags=[RunTag(tag, text) for tag, text in later.items()],
            )
        self.parent_params.update(new)
        self.parent_tags.update(later)


@dataclass(frozen=True)
class _Child:
    """A result row in MLflow's terms."""

    identity: Identity
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    dataset: tuple[str, str] | None
    start_ms: int
    end_ms: int

    @classmethod
    def of(cls, experiment: str, row: Mapping[str, Any]) -> "_Child":
        for column in ("task_key", "label"):
            if not isinstance(row.get(column), str):
                raise ValueError(
                    f"result row for MLflow: column '{column}' is {row.get(column)!r}; it must be "
                    "a text, because task_key and label tell rows apart"
                )
        params, metrics = {}, {}
        values = {column: _plain(value) for column, value in row.items()}
        for column, value in values.items():
            if column in _TAG_COLUMNS:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or (is_number and not math.isfinite(value)):
                continue
            if is_number and column not in PARAM_COLUMNS:
                metrics[column] = float(value)
            elif text := _text(value):
                params[column] = text
        name = [params[c] for c in ("dataset", "seed", "label", "attack") if c in params]
        if values.get("adaptive"):
            name.append("adaptive")
        end_ms = _milliseconds(values.get("created_at"))
        return cls(
            identity=(row["task_key"], row["label"]),
            name="/".join(name),
            tags={
                "sfumato.kind": "row",
                "sfumato.experiment": experiment,
                "sfumato.task_key": row["task_key"],
                "sfumato.label": row["label"],
            },
            params=params,
            metrics=metrics,
            dataset=(params["dataset"], params["dataset_hash"])
            if params.keys() >= {"dataset", "dataset_hash"}
            else None,
            start_ms=end_ms - int(1000 * metrics.get("duration_s", 0.0)),
            end_ms=end_ms,
        )

    def fill(self, client: Any, run_id: str) -> None:
        """Log everything at once; doing so again with the same values changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        client.log_batch(
            run_id,
            metrics=[Metric(name, value, self.end_ms, 0) for name, value in self.metrics.items()],
            params=[Param(name, text) for name, text in self.params.items()],
        )
        if self.dataset is not None:
            name, content_hash = self.dataset
            # MLflow takes 36 characters of digest; dataset_hash in full is a param.
            dataset = Dataset(name, content_hash[:36], "code", json.dumps({"tags": {}}))
            context = InputTag("mlflow.data.context", "evaluation")
            client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        client.set_terminated(run_id, end_time=self.end_ms)


def _connect(uri: str) -> Any:
    """An MLflow client for an address that is known to answer if it is a database."""
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)
    if _DATABASE.match(uri):
        # MLflow asks a database that refuses 15 times, doubling the pause: almost an hour.
        import sqlalchemy

        url = sqlalchemy.make_url(uri)
        backend = url.get_backend_name()
        if backend == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        limit = "connect_timeout" if backend in ("postgresql", "mysql") else "timeout"
        engine = sqlalchemy.create_engine(uri, connect_args={limit: _ANSWER_S})
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()
    from mlflow import MlflowClient

    # Also where something else imported MLflow before it could read our manners.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _alone(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # makes and migrates the tables of a new database
    return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold off other processes while a SQLite file is made: two migrations at once wreck it."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment_id(client: Any, experiment: str, artifact_root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    name = mlflow_experiment(experiment)
    found = client.get_experiment_by_name(name)
    if found is None:
        where = None if artifact_root is None else (artifact_root / experiment).resolve().as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=where))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another driver may have been quicker
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment '{name}' was deleted there; restore it or run `mlflow gc`")
    return str(found.experiment_id)


def _reason(error: BaseException, uri: str) -> str:
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


def _plain(value: Any) -> Any:
    """Numpy's and pandas' values as Python's own; NaN and NaT as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float | datetime) and value != value:
        return None
    return value


def _text(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, list | tuple):
        text = ",".join(str(_plain(item)) for item in value)
    elif isinstance(value, dict):
        text = json.dumps(value, sort_keys=True, default=str)
    elif isinstance(value, datetime):
        text = value.isoformat()
    else:
        text = str(value)
    return text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 1] + "…"


def _milliseconds(created_at: Any) -> int:
    """A UTC timestamp (naive means UTC) or ISO text in ms since 1970; now, if there is none."""
    moment = created_at
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        moment = datetime.now(UTC)
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
