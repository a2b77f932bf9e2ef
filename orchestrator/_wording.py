"""Pydantic's errors in our words: the path a person typed, the value, what would be right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.config import Experiment
from orchestrator.entries import (
    BY_COLUMN,
    BY_SIZES,
    DatasetEntry,
    Generator,
    ReferenceEntry,
    SplitColumn,
    SplitSizes,
)
from orchestrator.source import Problem, nearest
from orchestrator.tune_entry import Dimension, Objective, TuneEntry

__all__ = ["field_problem", "kind_problems", "problem_of"]

_RIGHT = {
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "string_type": "must be text (quote it)",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}
_ENTRY = {
    "target": "must be an architecture's name or a mapping; drop the key for the default",
    "split": "must be a mapping such as {members: 500, reference: 500, nonmembers: 500} "
    "or {column: role}",
    "reference": "must be where it comes from (members) or a mapping such as {size: 500}",
    "generator": "must be a mapping such as {rows: 3000}",
}
# Keys our models make of what a person wrote flat.
_GATHERED = ("params", "recipe")
_MODELS: Mapping[str, type[BaseModel]] = {
    "datasets": DatasetEntry,
    BY_SIZES: SplitSizes,
    BY_COLUMN: SplitColumn,
    "generator": Generator,
    "reference": ReferenceEntry,
    "tune": TuneEntry,
    "space": Dimension,
    "objectives": Objective,
}


def problem_of(detail: Mapping[str, Any], raw: Mapping[str, Any]) -> Problem:
    """One error of validating an experiment.

    Args:
        detail: an entry of `ValidationError.errors()`.
        raw: what was validated.
    """
    tagged = detail["loc"]
    detail = {**detail, "loc": [step for step in tagged if step not in (BY_SIZES, BY_COLUMN)]}
    location = [step for step in detail["loc"] if step != "[key]"]
    if len(location) < len(detail["loc"]) or detail["type"] == "invalid_key":
        location[-1] = str(location[-1])  # a key that is no text, such as 1, is no position
    if location[0] == "defenses" and len(location) > 2 and not _is_chain(raw, location[1]):
        location.pop(2)  # of the chain we wrap around a single defense
    message = _message(detail)
    if detail["type"] == "extra_forbidden":
        models = [_MODELS[step] for step in tagged[:-1] if step in _MODELS]
        keys = list((models[-1] if models else Experiment).model_fields)
        # A mistyped `column` leaves a split by sizes.
        keys += ["column"] if BY_SIZES in tagged else []
        message = f"is not a key here{nearest(str(location[-1]), keys)}"
    elif location == ["name"] and detail["type"] != "string_type":
        message += " (the file's name, unless it has a key name:)"
    return Problem(_path(location), message)


def field_problem(detail: Mapping[str, Any], path: str, known: Sequence[str]) -> Problem:
    """One error of validating the fields of a plugin or recipe that stands at `path`."""
    message = _message(detail)
    if detail["type"] == "extra_forbidden":
        message = f"is not a field here{nearest(str(detail['loc'][-1]), known)}"
    below = _path(detail["loc"])
    return Problem(f"{path}.{below}" if below else path, message)


def kind_problems(given: Any, made: Any, path: str) -> Iterator[Problem]:
    """What pydantic took for another kind of value: true for 1, '3' for 3, 1 for true.

    Args:
        given: the value of a field as the file has it.
        made: what pydantic made of it.
        path: where it stands.
    """
    if isinstance(given, list) and isinstance(made, list | tuple):
        for i, (item, of_item) in enumerate(zip(given, made, strict=False)):
            yield from kind_problems(item, of_item, f"{path}[{i}]")
    elif (wanted := _kind(made)) and _kind(given) and wanted != _kind(given):
        yield Problem(path, f"must be {wanted}, got {_shown(given)}")


def _kind(value: Any) -> str | None:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text (quote it)"}
    return kinds.get(type(value))


def _is_chain(raw: Mapping[str, Any], place: Any) -> bool:
    return isinstance(raw["defenses"], list) and isinstance(raw["defenses"][place], list)


def _path(location: Sequence[Any]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int) and path:
            path += f"[{step}]"
        elif step not in _GATHERED:
            path += f".{step}" if path else str(step)
    return path


def _message(detail: Mapping[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    last = detail["loc"][-1] if detail["loc"] else ""
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "is missing; add it"
    if kind == "invalid_key" or last == "[key]":
        return "is not text; a key must be (quote it)"
    if kind in ("too_short", "string_too_short") and not detail["input"]:
        return "must not be empty"
    return f"{_wanted(kind, context, last, detail)}, got {_shown(detail['input'])}"


def _wanted(kind: str, context: Mapping[str, Any], last: Any, detail: Mapping[str, Any]) -> str:
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
        "too_long": ("a list of at most", "max_length"),
        "too_short": ("a list of at least", "min_length"),
        "string_too_long": ("text of at most this many characters:", "max_length"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"must be {words} {context[key]}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        if "x7f" in context["pattern"]:
            return "must be one line of text without control characters"
        letters = "letters" if "A-Z" in context["pattern"] else "lower-case letters"
        return f"must be {letters}, digits, '_', '-' and '.', beginning with a letter or digit"
    if kind.startswith("model"):
        return _ENTRY.get(last, "must be a name or a mapping with a name")
    return _RIGHT.get(kind, re.sub("^Input should be", "must be", detail["msg"]))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list | tuple):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    if isinstance(value, bool):
        return str(value).lower()  # as YAML writes it
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
