"""The `tune:` block of an experiment file: what is searched, by whom it is judged, how long."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.entries import AttackEntry, DefenseEntry, Entry, Name, Seed, flat
from orchestrator.front import RULES, Direction

__all__ = [
    "COLUMNS",
    "Comparison",
    "Constraint",
    "Dimension",
    "Objective",
    "TuneEntry",
    "parse_seconds",
]

# Where a column of a trial comes from, and which way it is better. Of several attacks the worst
# counts: for all of `results` here, the largest.
_WORST = ("attack_accuracy", "auc")
_RESULTS = ("tpr_at_fpr_0_01", "tpr_at_fpr_0_001", "epsilon_lower_bound", "epsilon_one_run")
_GAINS = ("train_accuracy", "test_accuracy")
_COSTS = (
    *("test_accuracy_drop", "ece", "l1_distortion", "l1_distortion_p95", "label_change_rate"),
    *("fit_s", "fit_ratio", "query_s", "query_ratio", "query_ratio_1", "extra_bytes", "epsilon"),
)
COLUMNS: Mapping[str, tuple[Literal["worst", "results", "utility"], Direction]] = {
    **dict.fromkeys(_WORST, ("worst", "minimize")),
    **dict.fromkeys(_RESULTS, ("results", "minimize")),
    **dict.fromkeys(_GAINS, ("utility", "maximize")),
    **dict.fromkeys(_COSTS, ("utility", "minimize")),
}
"""What a study can search by: column -> (table, the better direction)."""

_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
MOST_STEPS = 1_000_000
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# Both strict: true and '3' are no numbers, and 1 stays a whole one.
Number = (
    Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True, allow_inf_nan=False)]
)


class Dimension(Entry):
    """One searched field: a range of numbers, or a choice of values."""

    low: Number | None = None
    high: Number | None = None
    log: bool = Field(False, strict=True, description="search magnitudes rather than values")
    step: Number | None = None
    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    when: dict[str, Any] = Field(
        default={}, description="searched only where these other fields have these values"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("takes either low and high, or choices (a list)")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step belong to low and high, not to choices")
            told = [json.dumps(value, sort_keys=True, default=str) for value in self.choices]
            if len(set(told)) < len(told):
                raise ValueError(f"choices {self.choices}: each can be there once")
            return self
        if self.low is None or self.high is None:
            raise ValueError("low and high go together")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, got {self.low}")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError("step must be above 0, and does not go with log")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step ({self.step}) must be at most high - low")
        if self.step is not None and (self.high - self.low) / self.step > MOST_STEPS:
            raise ValueError(f"step ({self.step}) leaves more than {MOST_STEPS} values; enlarge it")
        return self

    @property
    def ends(self) -> list[Any]:
        """Values that must all be ones the field can take."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]


@dataclass(frozen=True)
class Constraint:
    """A bound on a column; `violation` is above 0 where it does not hold."""

    column: str
    operator: Literal["<=", ">="]
    bound: float

    def violation(self, value: float) -> float:
        """How far beyond the bound, in units of the column; at most 0 where it holds."""
        return value - self.bound if self.operator == "<=" else self.bound - value

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read "test_accuracy_drop <= 0.01"; raises ValueError."""
        match = _CONSTRAINT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"'{text}' is no constraint; write COLUMN <= NUMBER or COLUMN >= NUMBER, such as "
                "test_accuracy_drop <= 0.01"
            )
        column, operator, bound = match.groups()
        if column not in COLUMNS:
            raise ValueError(f"'{column}' is no column of a trial; known: {', '.join(COLUMNS)}")
        return cls(column, "<=" if operator == "<=" else ">=", float(bound))


class Objective(Entry):
    """A column, and which way it is better."""

    column: str
    direction: Direction

    @model_validator(mode="before")
    @classmethod
    def _from_column(cls, value: Any) -> Any:
        given = {"column": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            return given
        column = given.get("column")
        if isinstance(column, str) and column in COLUMNS:
            return {"direction": COLUMNS[column][1], **given}
        return given

    @field_validator("column")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in COLUMNS:
            raise ValueError(f"'{value}' is no column of a trial; known: {', '.join(COLUMNS)}")
        return value


def parse_seconds(text: str) -> float:
    """Read a duration such as 90s, 30m, 1.5h; raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"'{text}' is no duration; write a number and s, m, h or d, such as 30m")
    return float(match[1]) * _UNITS[match[2]]


class TuneEntry(Entry):
    """A search for a defense's hyper-parameters.

    Trials see D1 and D2 only, and the attacks of this block; what is chosen is judged by the
    experiment's own attacks on the evaluation records.
    """

    defense: Annotated[list[DefenseEntry], Field(min_length=1)] = Field(
        description="a defense, or a list of them: a chain"
    )
    space: Annotated[dict[str, Dimension], Field(min_length=1)] = Field(
        description="field -> range; of a chain DEFENSE.field"
    )
    attacks: Annotated[list[AttackEntry], Field(min_length=1)] = Field(
        description="the tuning attackers"
    )
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=4)] = Field(
        default=[
            Objective(column="attack_accuracy", direction="minimize"),
            Objective(column="test_accuracy", direction="maximize"),
        ]
    )
    constraints: list[str] = Field(default=[], description="such as test_accuracy_drop <= 0.01")
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="of the trials; default: the experiment's"
    )
    trials: int = Field(20, ge=1, le=100_000, strict=True)
    time: str | None = Field(None, description="no trial starts after this long, such as 2h")
    sampler: Literal["tpe", "nsga2", "nsga3", "gp", "random", "grid"] = "tpe"
    startup: int | None = Field(
        None, ge=1, strict=True, description="random trials before tpe or gp learn; default 10"
    )
    population: int = Field(20, ge=2, strict=True, description="of nsga2 and nsga3")
    seed: Seed = 0
    start: bool = Field(
        True, strict=True, description="the defense as given is the first trial, if in the space"
    )
    prune: Literal["none", "median", "halving"] = Field(
        "median", description="with one objective: Optuna's pruner after every seed"
    )
    margin: float = Field(
        0.02,
        ge=0,
        description="with several: a trial that another beats by more than this in all of them "
        "under the first seed stops there",
    )
    in_flight: int | None = Field(
        None, ge=1, strict=True, description="trials at once; default: one per worker"
    )
    choose: str = "knee"
    judged: int = Field(
        5, ge=1, le=100, strict=True, description="points of the front judged by held-out attackers"
    )

    @model_validator(mode="before")
    @classmethod
    def _chain(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "defense" in value:
            given = value["defense"]
            return {**value, "defense": given if isinstance(given, list) else [given]}
        return value

    @field_validator("constraints")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        for text in value:
            Constraint.parse(text)
        return value

    @field_validator("time")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_seconds(value)
        return value

    @field_validator("choose")
    @classmethod
    def _rule(cls, value: str) -> str:
        if value not in RULES:
            raise ValueError(f"'{value}' is no rule; known: {', '.join(RULES)}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        columns = [objective.column for objective in self.objectives]
        if len(set(columns)) < len(columns):
            raise ValueError(f"objectives {columns}: each column can be an objective once")
        return self

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The constraints, read."""
        return tuple(map(Constraint.parse, self.constraints))

    def resolved(self) -> dict[str, Any]:
        """As plain data with defaults filled in."""
        plain = self.model_dump(mode="json", by_alias=True)
        plain["attacks"] = [flat(entry, "params") for entry in plain["attacks"]]
        plain["defense"] = [flat(entry, "params") for entry in plain["defense"]]
        return plain


class Comparison(Entry):
    """Several studies beside each other: a file with the key `compare`."""

    name: Name
    description: str = ""
    compare: Annotated[list[str], Field(min_length=2)] = Field(
        description="packaged studies, or paths of their files"
    )
    trials: int | None = Field(
        None, ge=1, strict=True, description="of each study, so that none is tuned harder"
    )
