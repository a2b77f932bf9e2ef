"""MLflow as a view of the result tables: rows become runs, and can always be sent again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage._child import PARAM_COLUMNS, Child, Identity, text_of
from storage._mlflow import (
    DATABASE,
    TrackingAway,
    all_runs,
    connect,
    default_uri,
    masked,
    mlflow_experiment,
    our_experiments,
    reason,
)
from storage._sqlite import fingerprint, set_aside

__all__ = [
    "PARAM_COLUMNS",
    "Identity",
    "Rebuilt",
    "Tracker",
    "TrackingAway",
    "default_uri",
    "fingerprint",
    "masked",
    "mlflow_experiment",
    "set_aside",
]


@dataclass(frozen=True)
class Rebuilt:
    """What `Tracker.rebuild` found and did, in child runs.

    Attributes:
        kept: they say what their rows say.
        added: rows had none, or one that said something else.
        removed: doubles, half-written ones, and those whose row is gone or says something else.
    """

    kept: int
    added: int
    removed: int


class Tracker:
    """Sends result rows to one MLflow store; use it from one thread at a time.

    Each experiment of ours is an MLflow experiment with a parent run (tag `sfumato.kind` is
    "parent") and a child run per row, told apart by the tags `sfumato.task_key` and
    `sfumato.label`. A child that was begun but not finished is completed by the next send, and
    what a lost answer doubled is made single.

    Args:
        uri: an MLflow server (http, https) or a database URL that MLflow takes.
        artifact_root: where artifacts go if `uri` is a database; a server has its own place.
        origin: whose rows these are, where several stores share `uri`; a tag of every child.
            Empty if all there is of ours is of this store.
    """

    def __init__(self, uri: str, artifact_root: Path, *, origin: str = "") -> None:
        self.uri = uri
        self.artifact_root = artifact_root
        self.origin = origin
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
        children = [Child.of(experiment, row, self.origin) for row in rows]
        if not children:
            return 0
        try:
            if experiment not in self._experiments:
                self._experiments[experiment] = self._ask(experiment)
            return self._experiments[experiment].send(children, _texts(experiment_params))
        except Exception as error:
            # Whatever MLflow, its HTTP client or its database driver raise, the rows wait. The
            # chain is cut because the cause's text may hold the password.
            self._experiments.pop(experiment, None)  # what MLflow holds is now uncertain
            raise self._away(error, "did not take the rows") from None

    def rebuild(
        self,
        experiment: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        experiment_params: Mapping[str, Any] = {},
    ) -> Rebuilt:
        """Make what MLflow holds of an experiment exactly what its rows say.

        An experiment deleted in MLflow is restored. Runs are deleted as MLflow does it: they can
        be restored there until `mlflow gc`. With an `origin`, rows of another that are not among
        `rows` are left alone. Doing it twice changes nothing.

        Args:
            experiment: our experiment's name.
            rows: all its result rows, as `send` takes them.
            experiment_params: as for `send`.

        Raises:
            ValueError: as `send`.
            TrackingAway: as `send`.
        """
        children = [Child.of(experiment, row, self.origin) for row in rows]
        self._experiments.pop(experiment, None)
        try:
            held = self._ask(experiment, restore=True)
            kept, removed = held.tidy({child.identity: child for child in children}, self.origin)
            added = held.send(children, _texts(experiment_params))
        except Exception as error:
            raise self._away(error, "could not be rebuilt") from None
        return Rebuilt(kept, added, removed)

    def experiments(self) -> list[str]:
        """The names of our experiments that MLflow holds; raises TrackingAway as `send` does."""
        try:
            return [name for name, _ in our_experiments(self._connect())]
        except Exception as error:
            raise self._away(error, "could not be asked") from None

    def _connect(self) -> Any:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def _ask(self, experiment: str, *, restore: bool = False) -> "_Experiment":
        client = self._connect()
        root = self.artifact_root if DATABASE.match(self.uri) else None
        return _Experiment(client, experiment, _experiment_id(client, experiment, root, restore))

    def _away(self, error: Exception, what: str) -> TrackingAway:
        return TrackingAway(
            f"MLflow at {masked(self.uri)} {what}: {reason(error, self.uri)}. "
            "Start the server or correct the address; `sfumato run` again sends what waits, "
            "`sfumato history --rebuild` makes all of it from the tables"
        )


class _Experiment:
    """One experiment in MLflow and what it holds."""

    def __init__(self, client: Any, experiment: str, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.rows: list[Any] = []
        parents = []
        for run in all_runs(client, [self.experiment_id]):
            kind = run.data.tags.get("sfumato.kind")
            if kind == "parent":
                parents.append(run)
            elif kind == "row":
                self.rows.append(run)
        if not parents:
            tags = {"sfumato.experiment": experiment, "sfumato.kind": "parent"}
            parents = [client.create_run(self.experiment_id, tags=tags, run_name=experiment)]
        # Two drivers that start at once may have made one each: both then use the older.
        parent, *self.more_parents = sorted(parents, key=_age)
        self.parent_id = parent.info.run_id
        self.parent_finished = parent.info.status == "FINISHED"
        self.parent_params = dict(parent.data.params)
        self.parent_tags = dict(parent.data.tags)
        self.finished: set[Identity] = set()
        self.begun: dict[Identity, Any] = {}
        self.doubles: list[Any] = []
        for run in sorted(self.rows, key=lambda run: (run.info.status != "FINISHED", *_age(run))):
            identity = _identity(run)
            if identity in self.finished or identity in self.begun:
                self.doubles.append(run)
            elif run.info.status == "FINISHED":
                self.finished.add(identity)
            else:
                self.begun[identity] = run

    def send(self, children: Sequence[Child], params: Mapping[str, str]) -> int:
        self._describe_parent(params)
        while self.doubles:  # of a create_run whose answer was lost, or of two drivers at once
            self.client.delete_run(self.doubles[-1].info.run_id)
            self.doubles.pop()
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

    def tidy(self, wanted: Mapping[Identity, Child], origin: str) -> tuple[int, int]:
        """Delete every row run that is not one of `wanted`; gives how many stay and went."""
        self.finished, self.begun, self.doubles = set(), {}, []
        num_removed = 0
        for run in sorted(self.rows, key=_age):
            identity, child = _identity(run), wanted.get(_identity(run))
            if child is None and origin and run.data.tags.get("sfumato.store") != origin:
                continue
            if child is not None and child.told_by(run) and identity not in self.finished:
                self.finished.add(identity)
                if run.data.tags.get("mlflow.parentRunId") != self.parent_id:
                    self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_id)
            else:
                self.client.delete_run(run.info.run_id)
                num_removed += 1
        for run in self.more_parents:
            self.client.delete_run(run.info.run_id)
        return len(self.finished), num_removed

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


def _experiment_id(client: Any, experiment: str, artifact_root: Path | None, restore: bool) -> str:
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
        if not restore:
            raise RuntimeError(
                f"experiment '{name}' was deleted there; restore it or run `mlflow gc`"
            )
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _identity(run: Any) -> Identity:
    tags = run.data.tags
    return tags.get("sfumato.task_key", ""), tags.get("sfumato.label", "")


def _age(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: text_of(value) for name, value in params.items()}
