"""What a run sends to MLflow, what waits to be sent, and all of it anew from the tables."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator._yaml import parsed
from orchestrator.plan import Plan
from orchestrator.resume import RESULTS, Store
from orchestrator.source import nearest
from storage.mirror import Ledger, Mirror
from storage.tables import Tables
from storage.tracking import (
    Identity,
    Rebuilt,
    Tracker,
    TrackingAway,
    default_uri,
    fingerprint,
    set_aside,
)

__all__ = ["History", "rebuild", "trial_run"]

_CLOSE_S = 60.0
# Columns that a later run may change, or that say of an experiment what the settings say too.
_OF_CELLS = ["experiment", "status", "current", "form", "service", "settings"]


class History:
    """Mirrors result rows to MLflow; MLflow is never imported when nothing is new.

    The store's own database is a view of the tables: damaged, it is set aside and made anew.
    """

    def __init__(self, plan: Plan, store: Store, uri: str | None) -> None:
        self._experiment, self._store = plan.experiment, store
        self._own = uri is None
        self._uri = uri or default_uri(store.root)
        self._ledger = _ledger(store, plan.experiment.name)
        self._mirror: Mirror | None = None
        self._handed: set[Identity] = set()
        # One task may fill several cells: the same defense under two labels.
        self._labels: dict[str, list[dict[str, str]]] = {}
        for cell in plan.cells:
            shown = {"label": cell.label, "preset": cell.preset, "attack_label": cell.attack}
            self._labels.setdefault(cell.task.key, []).append(shown)
        self._mended, self._warnings = self._mend(thorough=False)
        self._database = fingerprint(self._uri) if self._own else ""

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send result rows soon, without waiting."""
        labelled = _once(
            {**row, **shown} for row in rows for shown in self._labels.get(str(row["task_key"]), ())
        )
        self.hand_over(labelled)

    def hand_over(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send rows that have their label soon, without waiting."""
        if rows:
            self._handed.update((row["task_key"], row["label"]) for row in rows)
            self._sender().put(rows)

    def close(self) -> list[str]:
        """Send what waits from earlier runs too; gives warnings for the person."""
        rows = _rows(self._store.tables, self._experiment.name)
        # What was handed over the mirror keeps, and tries again, until it is closed.
        others = [row for row in rows if (row["task_key"], row["label"]) not in self._handed]
        waiting = self._ledger.waiting(self._uri, others)
        if waiting:
            self._sender().put(waiting)
        warning = None if self._mirror is None else self._mirror.close(timeout_s=_CLOSE_S)
        if self._mirror is not None and not self._mended:  # it may have been damaged meanwhile
            self._mended, said = self._mend(thorough=warning is not None)
            if self._database not in ("", fingerprint(self._uri)) and not self._mended:
                path = self._store.root / "mlflow.db"
                self._mended, said = True, [f"{path} was replaced during the run"]
            self._warnings += said
            warning = None if self._mended else warning
        if warning is not None:
            self._warnings.append(warning)
        elif self._mended:
            self._remake()
        if self._mirror is not None:
            arrived = [r for r in rows if (r["task_key"], r["label"]) in self._mirror.sent]
            try:
                self._ledger.mark(self._uri, arrived)
            except OSError as error:  # they would be looked up and not sent twice
                self._warnings.append(f"what was sent to MLflow could not be noted: {error}")
        return list(dict.fromkeys(self._warnings))

    def _mend(self, *, thorough: bool) -> tuple[bool, list[str]]:
        """Set the store's own database aside if it is damaged; whether it was, and what to say."""
        if not self._own:
            return False, []
        try:
            said = _set_aside(self._store, thorough=thorough)
        except OSError as error:
            path = self._store.root / "mlflow.db"
            return False, [f"{path} is damaged and could not be moved away: {error}"]
        return said is not None, [said] if said else []

    def _remake(self) -> None:
        try:
            rebuild(self._store, None)
            self._warnings.append("the run history was made anew from the tables")
        except (TrackingAway, OSError) as error:
            self._warnings.append(str(error))

    def _sender(self) -> Mirror:
        if self._mirror is None:
            tracker = _tracker(self._store, None if self._own else self._uri)
            params = _params(self._experiment.resolved())
            self._mirror = Mirror(tracker, self._experiment.name, params)
        return self._mirror


def rebuild(
    store: Store, uri: str | None, name: str | None = None
) -> tuple[dict[str, Rebuilt], list[str]]:
    """Make the run history in MLflow exactly what the store's tables say; twice changes nothing.

    Args:
        store: whose tables.
        uri: an MLflow server or database; None for the store's own, which is set aside and made
            anew if it is damaged, and in which experiments the tables do not know lose their rows.
        name: only this experiment.

    Returns:
        What was done, by experiment, and what the person should know.

    Raises:
        ValueError: the tables know no experiment of that name.
        TrackingAway: MLflow is away or refuses.
        OSError: the store's own database is damaged and cannot be moved away.
    """
    tables, address = store.tables, uri or default_uri(store.root)
    asked = (tables.frame(table)["experiment"].dropna() for table in ("cells", "trials"))
    known = sorted({name for names in asked for name in names})
    if name is not None and name not in known:
        raise ValueError(f"{tables.root} has no experiment '{name}'{nearest(name, known)}")
    said = _set_aside(store, thorough=True) if uri is None else None
    tracker, done = _tracker(store, uri), {}
    if name is None and uri is None:
        gone = set(tracker.experiments()) - set(known)
        done = {other: tracker.rebuild(other, []) for other in sorted(gone)}
    for each in known if name is None else [name]:
        rows = _rows(tables, each)
        done[each] = tracker.rebuild(each, rows, experiment_params=_described(store, each))
        ledger = _ledger(store, each)
        ledger.mark(address, ledger.waiting(address, rows))
    return done, [*([said] if said else []), *tables.problems]


def _tracker(store: Store, uri: str | None) -> Tracker:
    folder = store.root / "mlflow-artifacts"
    if uri is None:
        return Tracker(default_uri(store.root), folder)
    # A server may be shared by many stores; a rebuild of one must not touch the rows of another.
    place = f"{platform.node()}:{store.root.resolve()}"
    return Tracker(uri, folder, origin=hashlib.sha256(place.encode()).hexdigest()[:12])


def _ledger(store: Store, experiment: str) -> Ledger:
    return Ledger(store.experiment(experiment) / "tracked.jsonl")


def _set_aside(store: Store, *, thorough: bool) -> str | None:
    """Move the store's own database away if it is damaged; gives what to say of it."""
    return set_aside(store.root / "mlflow.db", store.root / "damaged", thorough=thorough)


def _rows(tables: Tables, experiment: str) -> list[dict[str, Any]]:
    # A cell's status may still change; a row that is there is done.
    frames = (tables.frame(view, experiment).drop(columns=_OF_CELLS) for view in RESULTS)
    rows = [_named(row) for frame in frames for row in frame.to_dict("records")]
    trials = tables.frame("trials")
    ended = (trials["experiment"] == experiment) & (trials["state"] != "running")
    return _once([*rows, *(trial_run(_named(row)) for row in trials[ended].to_dict("records"))])


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def trial_run(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the trials as a run of the history, told from others by the trial's own key."""
    left_out = ("key", "experiment", "task_keys", "number")
    run = {name: value for name, value in row.items() if name not in left_out}
    return {**run, "task_key": row["key"], "trial": int(row["number"])}


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, without a task's second under one label: the same attack under two names."""
    found: dict[Identity, dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row["task_key"], row["label"]), row)
    return list(found.values())


def _described(store: Store, experiment: str) -> dict[str, Any]:
    """Params of the parent run as the store describes the experiment; none if it does not."""
    path = store.experiment(experiment) / "experiment.yaml"
    try:
        return _params(parsed(path.read_text(encoding="utf-8"))[0])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _params(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "preset": resolved["preset"],
        "seeds": ",".join(map(str, resolved["seeds"])),
        "datasets": ",".join(entry["name"] for entry in resolved["datasets"]),
        "description": resolved["description"],
    }
