"""Every flag that a result can carry has a meaning, and every mark is explained."""

import ast
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.flags import MEANING, explained, marked, marks_explained

ROOT = Path(__file__).parents[2]
FLAGS = st.sets(st.sampled_from([*MEANING, "of_a_newer_version"]))


def texts(node: ast.AST) -> Iterator[str]:
    """The texts a list, set, tuple or dict is made of, or one by itself."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.List(elts=parts) | ast.Set(elts=parts) | ast.Tuple(elts=parts):
            for part in parts:
                yield from texts(part)
        case ast.Dict(values=parts):
            for part in parts:
                yield from texts(part)
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one)
            yield from texts(other)


def raised(tree: ast.AST) -> Iterator[str]:
    """The flags that code raises, in all the ways it does so."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="append" | "add", value=ast.Name(id="flags")), args=[flag]
            ):
                yield from texts(flag)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if key is not None and "flags" in texts(key):
                        yield from texts(value)
            case (
                ast.Assign(targets=[ast.Name(id="FLAGS")], value=value)
                | ast.AnnAssign(target=ast.Name(id="FLAGS"), value=ast.expr() as value)
            ):
                yield from texts(value)
            case ast.Assign(targets=[ast.Name(id="raised")], value=ast.Dict(keys=keys)):
                for key in keys:
                    yield from texts(key)
            case ast.FunctionDef(name="flags" | "_flags"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Set):
                        yield from texts(inner)
            case ast.Call(func=ast.Name(id="Violation"), args=[name, *_], keywords=[*_, keyword]):
                if keyword.arg == "fatal":
                    yield from (text.lower() for text in texts(name))


def test_every_flag_in_the_code_has_a_meaning_and_every_meaning_a_flag():
    found: set[str] = set()
    for package in ("tasks", "attacks", "defenses", "storage"):
        for path in (ROOT / package).glob("*.py"):
            found.update(raised(ast.parse(path.read_text())))
    assert found == MEANING.keys()


def test_other_flags_do_not_share_a_mark():
    marks = [mark for mark, _ in MEANING.values() if mark]
    assert {mark for mark in marks if marks.count(mark) > 1} == {"V"}


@given(FLAGS)
def test_every_mark_and_every_flag_that_is_printed_is_explained(flags):
    told = marks_explained(flags)
    behind = marked(flags)
    assert bool(behind) == bool(told)
    known = flags & MEANING.keys()
    for mark, meaning in (MEANING[flag] for flag in known):
        if mark:
            assert mark in behind
            assert f"{mark} = {meaning}" in told
    assert [line.split(":")[0] for line in explained(flags).splitlines()] == sorted(known)


def test_meanings_are_a_line_each():
    assert all(meaning and "\n" not in meaning for _, meaning in MEANING.values())
