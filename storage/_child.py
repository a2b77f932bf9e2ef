"""A result row in MLflow's terms: params, metrics, tags, and how they reach a run."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PARAM_COLUMNS = frozenset(
    {
        *("dataset", "dataset_hash", "seed", "architecture", "judge", "label", "preset"),
        *("defense", "defense_params", "attack", "attack_params", "threat_model", "adaptive"),
        *("noise_policy", "flags", "device", "worker"),
    }
)
_TAG_COLUMNS = frozenset({"task_key", "experiment"})
_PARAM_LENGTH = 6000  # MLflow's limit, since 2.9

Identity = tuple[str, str]


@dataclass(frozen=True)
class Child:
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
    def of(cls, experiment: str, row: Mapping[str, Any], origin: str = "") -> "Child":
        """A row as `Tracker.send` takes it; raises ValueError if nothing tells it from others."""
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
            elif text := text_of(value):
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
            }
            | ({"sfumato.store": origin} if origin else {}),
            params=params,
            metrics=metrics,
            dataset=(params["dataset"], params["dataset_hash"])
            if params.keys() >= {"dataset", "dataset_hash"}
            else None,
            start_ms=end_ms - int(1000 * metrics.get("duration_s", 0.0)),
            end_ms=end_ms,
        )

    def told_by(self, run: Any) -> bool:
        """Whether a run is finished and says what the row says, no less and no more."""
        told: bool = (
            run.info.status == "FINISHED"
            and run.data.params == self.params
            and run.data.metrics == self.metrics
        )
        return told

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


def _plain(value: Any) -> Any:
    """Numpy's and pandas' values as Python's own; NaN and NaT as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float | datetime) and value != value:
        return None
    return value


def text_of(value: Any) -> str:
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
