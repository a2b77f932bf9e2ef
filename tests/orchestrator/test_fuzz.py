"""Any experiment file, any setting: a plan or a few readable lines, nothing written, in time."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.check import load_experiment
from orchestrator.config import Experiment
from orchestrator.plan import make_plan

VALID: dict[str, Any] = {
    "name": "tiny",
    "description": "a valid experiment",
    "seeds": [0, 1],
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 300, "classes": 4},
            "split": {"members": 60, "reference": 60, "nonmembers": 60, "untrained": 20},
            "known": 0.5,
            "judge": "members",
            "dedup": "group",
        },
        "digits_binary",
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8], "learning_rate": 1e-3},
    "defenses": [
        "none",
        {"name": "purifier", "label": "small", "epochs": 2, "noise": "per_input"},
        {"name": "prototype", "reference": {"from": "members", "size": 30}},
        ["l2", {"name": "purifier", "grid": {"latent": [2, 3]}, "preset": "sound"}],
    ],
    "attacks": [
        "gap",
        {"name": "ml_leaks", "hidden": 8, "adaptive": True},
        {"name": "lira", "num_shadows": 6},
        {"name": "nsh", "grid": {"width": [0.5, 1.0]}, "fit_on": "clean"},
    ],
    "adaptive": True,
    "preset": "cpu",
}
SLOWEST_S = 15.0  # of processor time, for one file; the slowest seen took 3
LONGEST = 1200
DEEP = "a place that is nested deep"

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates too
WORDS = st.sampled_from(
    [
        *Experiment.model_fields,
        *("label", "grid", "noise", "split", "generator", "members", "rows", "path", "column"),
        *("epochs", "hidden", "architecture", "width", "fit_on", "num_shadows"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-100, 100),
    st.integers(),
    st.integers().map(lambda n: n * 10**300),
    st.floats(),
    TEXTS,
    TEXTS.map(lambda text: text * 5000),
    st.dates(),
    st.binary(max_size=4),
    st.just(DEEP),
    st.sampled_from(["none", "purifier", "l2", "gap", "nsh", "lira", "synth_s", "mlp_s", "cnn_s"]),
    st.sampled_from(["fresh", "sound", "1e-3", "yes", "~", ".nan", "/", "..", "/dev/zero", "~x/y"]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(WORDS, TEXTS, st.integers(), st.dates()), inner, max_size=4),
    ),
    max_leaves=8,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a structure, as the steps that lead there."""
    found = [above] if above else []
    listed = enumerate(value) if isinstance(value, list) else ()
    for step, item in value.items() if isinstance(value, dict) else listed:
        found += places(item, (*above, step))
    return found


def put(inner: Any, step: Any, value: Any) -> None:
    inner[step] = value


def drop(inner: Any, step: Any, value: Any) -> None:
    del inner[step]


def insert(inner: Any, step: Any, value: Any) -> None:
    if isinstance(inner, list):
        inner.insert(step, value)
    else:
        inner[value if isinstance(value, str) else "other"] = value


def double(inner: Any, step: Any, value: Any) -> None:
    insert(inner, step, copy.deepcopy(inner[step]))


def wrap(inner: Any, step: Any, value: Any) -> None:
    inner[step] = [inner[step]]


def name_it(inner: Any, step: Any, value: Any) -> None:
    inner[step] = {"name": inner[step]}


def as_text(inner: Any, step: Any, value: Any) -> None:
    inner[step] = str(inner[step])


def as_bool(inner: Any, step: Any, value: Any) -> None:
    inner[step] = bool(inner[step])


def opposite(inner: Any, step: Any, value: Any) -> None:
    inner[step] = -inner[step] if isinstance(inner[step], int | float) else None


def tenfold(inner: Any, step: Any, value: Any) -> None:
    inner[step] = inner[step] * 10 if isinstance(inner[step], int | float | list) else value


ACTS = (put, put, insert, drop, double, wrap, name_it, as_text, as_bool, opposite, tenfold)
EDITS = st.lists(
    st.tuples(st.sampled_from(ACTS), st.integers(0, 10**6), ANYTHING), min_size=1, max_size=4
)


def edited(edits: list[tuple[Callable[..., None], int, Any]]) -> Mapping[str, Any]:
    content = copy.deepcopy(VALID)
    for act, number, value in edits:
        found = places(content)
        if not found:
            break
        *above, step = found[number % len(found)]
        inner: Any = content
        for outer in above:
            inner = inner[outer]
        act(inner, step, copy.deepcopy(value))
    return content


def dumped(content: Any) -> str:
    text = yaml.safe_dump(content, sort_keys=False)
    return text.replace(DEEP, "[" * 1500 + "]" * 1500)


def judge(place: Any, content: str | bytes, *overrides: str) -> None:
    """Whatever the file says and the settings are, this holds."""
    file = place.text(content)
    options = [part for setting in overrides for part in ("--set", setting)]
    began = time.process_time()
    said = place.command("plan", file, "--store", place.store, *options)
    assert time.process_time() - began < SLOWEST_S, "took too long"
    assert said.code in (0, 2), said.text
    assert said.text.strip()
    lines = said.text.splitlines()
    assert all(len(line) < LONGEST for line in lines), max(map(len, lines))
    assert all(line.isprintable() for line in lines), said.text
    assert [path.name for path in place.folder.iterdir()] == ["tiny.yaml"], "something was written"
    if said.code == 0:
        once, again = (make_plan(load_experiment(file, overrides), None) for _ in range(2))
        assert list(once.tasks) == list(again.tasks)
        assert once.tasks
    else:
        assert len(lines) <= 21, said.text


def many(number: int) -> settings:
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


# Of each of four: 5,000 files and settings in all when there is time.
FEW_AND_MANY = pytest.mark.parametrize(
    "number", [30, pytest.param(1250, marks=pytest.mark.slow, id="many")]
)


def test_what_is_changed_is_valid(place: Any) -> None:
    file = place.text(yaml.safe_dump(VALID))
    assert place.command("plan", file, "--store", place.store).code == 0


@FEW_AND_MANY
def test_any_change_of_a_valid_file(place: Any, number: int) -> None:
    @many(number)
    @given(EDITS)
    def holds(edits: list[Any]) -> None:
        judge(place, dumped(edited(edits)))

    holds()


@FEW_AND_MANY
def test_any_structure(place: Any, number: int) -> None:
    keys = st.sampled_from([*Experiment.model_fields, "other"])

    @many(number)
    @given(st.one_of(ANYTHING, st.dictionaries(keys, ANYTHING, min_size=1, max_size=9)))
    def holds(content: Any) -> None:
        judge(place, dumped(content))

    holds()


MARKS = st.text(
    st.sampled_from(list("abc01:-[]{}&*!?|>'\"%@#~.,_ \n\t\x00\ufeff\x85é")), max_size=60
)
LINES = st.lists(
    st.sampled_from(
        [
            *yaml.safe_dump(VALID, sort_keys=False).splitlines(),
            *("- &a [*a]", "<<: *a", "a: &a {<<: *a}", "? x", "--- !!set", "%YAML 9.9", "..."),
            *(
                "- " * 900,
                "{" * 900,
                "x: !!int '1_'",
                "x: 0x" + "f" * 400,
                "x: " + "1:" * 500 + "1",
            ),
        ]
    ),
    max_size=40,
).map("\n".join)


@FEW_AND_MANY
def test_any_text_or_bytes(place: Any, number: int) -> None:
    @many(number)
    @given(st.one_of(MARKS, LINES, st.binary(max_size=200), st.text(max_size=200)))
    def holds(content: str | bytes) -> None:
        judge(place, content)

    holds()


STEPS = st.one_of(WORDS, TEXTS, st.integers(-1, 9).map(lambda i: f"[{i}]"))
PATHS = st.one_of(
    st.sampled_from(places(VALID)).map(
        lambda steps: "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)[1:]
    ),
    st.lists(STEPS, max_size=6).map(".".join),
    st.lists(STEPS, max_size=6).map("".join),
    st.integers(20, 2000).map(lambda n: ".".join("a" * n)),
)
SETTINGS = st.one_of(
    st.tuples(PATHS, st.one_of(ANYTHING.map(lambda value: yaml.safe_dump(value)), MARKS)).map(
        "=".join
    ),
    PATHS,
    TEXTS,
)


@FEW_AND_MANY
def test_any_setting(place: Any, number: int) -> None:
    @many(number)
    @given(st.lists(SETTINGS, min_size=1, max_size=4))
    def holds(overrides: list[str]) -> None:
        judge(place, yaml.safe_dump(VALID, sort_keys=False), *overrides)

    holds()
