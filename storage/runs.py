"""The run history asked: conditions in plain columns, sorted, as rows.

    from storage.runs import find_runs
    find_runs("sqlite:///store/mlflow.db", filters=["dataset = location30 and auc > 0.6"])

A condition is `COLUMN OPERATOR VALUE`; several are joined by `and`. Numbers take = != < <= > >=,
texts = != LIKE ILIKE (`%` any letters, `_` any one), `started` a date or time (UTC) with < <= > >=.
A value with spaces around words like `and`, or with quotes, stands in quotes of the other kind.
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from storage._child import PARAM_COLUMNS
from storage._mlflow import (
    TrackingAway,
    all_runs,
    be_polite,
    connect,
    masked,
    our_experiments,
    reason,
)
from storage._schemas import BOOL, REAL, SCHEMAS, WHOLE

__all__ = ["COLUMNS", "NUMBERS", "check_columns", "find_runs"]

_FIELDS = {
    field.name: field.type
    for table in ("trials", "results", "inversion", "attribute")
    for field in SCHEMAS[table]
}
_FIELDS["trial"] = WHOLE
NUMBERS = {name for name, kind in _FIELDS.items() if kind in (REAL, WHOLE)} - PARAM_COLUMNS
_TAGS = ("experiment", "task_key")
COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(("started", "experiment", "label", "preset", "attack_label", "trial", *_FIELDS))
)
"""What can be shown, asked for and sorted by."""

_CONDITION = re.compile(
    r"""\s*(?P<column>[^\s=<>!'"]+)\s*(?P<operator><=|>=|!=|<>|==|=|<|>|\bI?LIKE\b)\s*"""
    r"""(?P<value>'(?:[^']|'')*'|"(?:[^"]|"")*"|(?!['"\s]).*?)\s*(?P<more>\bAND\b\s*|$)""",
    re.IGNORECASE | re.DOTALL,
)
_ALIASES = {"==": "=", "<>": "!="}
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_TEXT = ("=", "!=", "LIKE", "ILIKE")

# Kind of thing in MLflow, its key there, the operator, the value: a condition as MLflow reads it.
_Term = tuple[str, str, str, Any]


def check_columns(names: Sequence[str]) -> None:
    """Raise ValueError, with the nearest name, if one of `names` is no column of the history."""
    for name in names:
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(COLUMNS)}"
            raise ValueError(f"the history has no column '{name}'; {hint}")


def find_runs(
    uri: str,
    *,
    experiment: str | None = None,
    filters: Sequence[str] = (),
    sort: str = "started",
    ascending: bool = False,
    limit: int | None = 50,
) -> list[dict[str, Any]]:
    """Result rows as MLflow holds them.

    Args:
        uri: an MLflow server or database.
        experiment: only of this one of our experiments.
        filters: conditions; all of them must hold.
        sort: a column. Rows that lack it come last; texts sort as texts.
        ascending: smallest first.
        limit: how many rows at most; None for all.

    Returns:
        A dict a run, of those of `COLUMNS` that it has; `started` is a UTC datetime, `flags` a
        list, the rest is typed as in the tables.

    Raises:
        ValueError: a condition that cannot be read, an unknown column or experiment.
        TrackingAway: MLflow is away, or its database is not there.
    """
    check_columns([sort])
    where, order = _filter(filters), f"{_place(sort)} {'ASC' if ascending else 'DESC'}"
    try:
        client = connect(uri, create=False)
        ours = dict(our_experiments(client))
    except Exception as error:  # as in Tracker.send: the cause's text may hold the password
        raise _away(error, uri) from None
    if experiment is not None and experiment not in ours:
        known = ", ".join(ours) or "none"
        raise ValueError(
            f"{masked(uri)} has no history of an experiment '{experiment}'; known: {known}"
        )
    wanted = [ours[experiment]] if experiment is not None else list(ours.values())
    if not wanted:
        return []
    # Params are texts, and MLflow sorts them so: 10 before 2.
    by_number = sort == "seed"
    try:
        found = all_runs(
            client,
            wanted,
            where,
            [order],
            limit=None if by_number else limit,
        )
    except Exception as error:
        raise _away(error, uri) from None
    rows = [_row(run) for run in found]
    if by_number:
        rows.sort(key=lambda row: row.get("seed", math.inf), reverse=not ascending)
    return rows[:limit]


def _away(error: Exception, uri: str) -> TrackingAway:
    return TrackingAway(f"the history at {masked(uri)} cannot be read: {reason(error, uri)}")


def _filter(expressions: Sequence[str]) -> str:
    """The conditions in MLflow's filter language, and that it is a finished row of ours.

    Raises:
        ValueError: as `find_runs`; also a text that MLflow's language cannot say.
    """
    terms: list[_Term] = [
        ("tag", "sfumato.kind", "=", "row"),
        ("attribute", "status", "=", "FINISHED"),
    ]
    text = " AND ".join(_spelled(term) for term in terms)
    for expression in expressions:
        for term in _terms(expression):
            terms.append(term)
            text += f" AND {_spelled(term)}"
            if not _means(text, terms):
                raise ValueError(
                    f"--filter {expression}: MLflow's filters cannot say {term[3]!r}. Use LIKE "
                    "with % in place of quotes and backslashes"
                )
    return text


def _terms(expression: str) -> Iterator[_Term]:
    expression, end = expression.strip(), 0
    while end < len(expression) or not end:
        match = _CONDITION.match(expression, end)
        if (
            match is None
            or not match["value"]
            or (match["more"] and match.end() == len(expression))
        ):
            raise ValueError(
                f"--filter {expression}: {expression[end:].strip()!r} is no condition; write "
                "COLUMN OPERATOR VALUE, joined by 'and', e.g. dataset = location30 and auc > 0.6"
            )
        value = match["value"]
        if value[:1] in ("'", '"'):
            value = value[1:-1].replace(value[0] * 2, value[0])
        elif re.search(r"[=<>]|\bor\b", value, re.IGNORECASE):
            raise ValueError(
                f"--filter {expression}: {value!r} is more than a value; put a text in quotes, and "
                "join conditions by 'and' ('or' is not known; ask twice)"
            )
        operator = match["operator"].upper()
        try:
            yield _term(match["column"], _ALIASES.get(operator, operator), value)
        except ValueError as error:
            raise ValueError(f"--filter {expression}: {error}") from None
        end = match.end()


def _term(column: str, operator: str, value: str) -> _Term:
    check_columns([column])
    kind = "time" if column == "started" else "number" if column in NUMBERS else "text"
    allowed = {"time": _COMPARISONS[2:], "number": _COMPARISONS, "text": _TEXT}[kind]
    if operator not in allowed:
        raise ValueError(f"{column} is a {kind} and takes {' '.join(allowed)}, not {operator}")
    if kind == "time":
        return "attribute", "start_time", operator, _milliseconds(value)
    if kind == "number":
        return "metric", column, operator, _number(column, value)
    if column == "task_key" and operator == "=" and len(value) < 64:
        operator, value = "LIKE", f"{value}%"  # tables show the beginning of a key
    if column in _TAGS:
        return "tag", f"sfumato.{column}", operator, value
    if _FIELDS.get(column) == BOOL:
        value = value.capitalize()
    if not value and operator in ("=", "!="):  # nothing empty is sent
        return "parameter", column, "IS NULL" if operator == "=" else "IS NOT NULL", None
    return "parameter", column, operator, value


def _number(column: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} is a number, {value!r} is none; write e.g. {column} > 0.6")
    return number


def _milliseconds(value: str) -> int:
    try:
        moment = datetime.fromisoformat(value)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{value!r} is no date or time; write e.g. started >= 2026-01-31 or "
            "started >= 2026-01-31T15:00 (UTC)"
        ) from None


def _spelled(term: _Term) -> str:
    kind, key, operator, value = term
    place = f"{kind}s.`{key}`"
    if value is None:
        return f"{place} {operator}"
    if isinstance(value, float):
        return f"{place} {operator} {repr(value).replace('e+', 'e')}"
    quote = '"' if "'" in str(value) else "'"
    return f"{place} {operator} {value if isinstance(value, int) else quote + value + quote}"


def _means(text: str, terms: Sequence[_Term]) -> bool:
    """Whether MLflow reads in `text` these terms and nothing else."""
    be_polite()
    from mlflow.utils.search_utils import SearchUtils

    try:
        read = SearchUtils.parse_search_filter(text)
    except Exception:  # of its own, or of the SQL parser below it
        return False
    said = [(term["type"], term["key"], term["comparator"], term["value"]) for term in read]
    return [(*s[:3], float(s[3]) if s[0] == "metric" else s[3]) for s in said] == list(terms)


def _place(column: str) -> str:
    """Where MLflow keeps a column."""
    if column == "started":
        return "attributes.start_time"
    if column in _TAGS:
        return f"tags.`sfumato.{column}`"
    return f"metrics.`{column}`" if column in NUMBERS else f"params.`{column}`"


def _row(run: Any) -> dict[str, Any]:
    data = run.data
    row: dict[str, Any] = {
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        **{name: data.tags.get(f"sfumato.{name}", "") for name in _TAGS},
    }
    for name in COLUMNS:
        kind = _FIELDS.get(name)
        if name in data.metrics:
            value = data.metrics[name]
            row[name] = int(value) if kind == WHOLE and value == int(value) else value
        elif name in data.params:
            text = data.params[name]
            if kind == WHOLE:
                row[name] = int(text) if re.fullmatch(r"-?[0-9]+", text) else text
            elif kind == BOOL:
                row[name] = text == "True"
            else:
                listed = kind is not None and pa.types.is_list(kind)
                row[name] = text.split(",") if listed else text
    return row
