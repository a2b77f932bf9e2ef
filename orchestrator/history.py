"""What a run sends to MLflow, and what waits to be sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.plan import Plan
from orchestrator.resume import Store
from storage.mirror import Ledger, Mirror
from storage.tracking import Identity, Tracker, default_uri

__all__ = ["History"]


class History:
    """Mirrors result rows to MLflow; MLflow is never imported when nothing is new."""

    def __init__(self, plan: Plan, store: Store, uri: str | None) -> None:
        self._experiment, self._store = plan.experiment, store
        self._uri = uri or default_uri(store.root)
        self._ledger = Ledger(store.experiment(plan.experiment.name) / "tracked.jsonl")
        self._mirror: Mirror | None = None
        self._handed: set[Identity] = set()
        # One task may fill several cells: the same defense under two labels.
        self._labels: dict[str, list[tuple[str, str]]] = {}
        for cell in plan.cells:
            self._labels.setdefault(cell.task.key, []).append((cell.label, cell.preset))

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send result rows soon, without waiting."""
        labelled = [
            {**row, "label": label, "preset": preset}
            for row in rows
            for label, preset in self._labels.get(str(row["task_key"]), ())
        ]
        if labelled:
            self._handed.update((row["task_key"], row["label"]) for row in labelled)
            self._sender().put(labelled)

    def close(self) -> list[str]:
        """Send what waits from earlier runs too; gives warnings for the person."""
        frame = self._store.tables.frame("results", self._experiment.name)
        rows: list[dict[str, Any]] = [
            {str(name): value for name, value in row.items()} for row in frame.to_dict("records")
        ]
        # What was handed over the mirror keeps, and tries again, until it is closed.
        others = [row for row in rows if (row["task_key"], row["label"]) not in self._handed]
        waiting = self._ledger.waiting(self._uri, others)
        if waiting:
            self._sender().put(waiting)
        if self._mirror is None:
            return []
        warning = self._mirror.close(timeout_s=60)
        arrived = [r for r in rows if (r["task_key"], r["label"]) in self._mirror.sent]
        try:
            self._ledger.mark(self._uri, arrived)
        except OSError as error:  # they would be looked up and not sent twice
            return [f"what was sent to MLflow could not be noted: {error}"]
        return [warning] if warning else []

    def _sender(self) -> Mirror:
        if self._mirror is None:
            tracker = Tracker(self._uri, self._store.root / "mlflow-artifacts")
            params = {
                "preset": self._experiment.preset,
                "seeds": ",".join(map(str, self._experiment.seeds)),
                "datasets": ",".join(entry.name for entry in self._experiment.datasets),
                "description": self._experiment.description,
            }
            self._mirror = Mirror(tracker, self._experiment.name, params)
        return self._mirror
