"""A YAML text as plain data: the line of every path, and what is wrong with it."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from orchestrator._problem import Problem

# An experiment of a thousand plugins has far less; a few lines of aliases make far more.
_MOST_VALUES = 100_000
_MOST_BITS = 1000
_LONGEST_NUMBER = 1000  # characters; 59:59:59... is a number too, which takes their square to read
DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as it is written today: 1e-3 is a number, though 1.1 wants 1.0e-3."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:  # PyYAML would take seconds to find that it cannot
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)


def parsed(text: str) -> tuple[Any, dict[str, int], list[Problem]]:
    """The value of a YAML text, the line of every path in it, and what is wrong with it."""
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, problems
        problem = _too_large(node)
        if problem is None:
            for path, line, fault in _walk(loader, node, ""):
                lines.setdefault(path, line)
                problems += [Problem(path, fault, line)] if fault else []
            if any("cannot be read" in fault.message for fault in problems):
                return None, lines, problems
            return _unshared(loader.construct_document(node)), lines, problems
    except yaml.YAMLError as error:
        problem = _syntax(error, text)
    except RecursionError:
        message = f"is nested deeper than {DEEPEST} levels, or an alias in it holds itself"
        problem = Problem("", f"{message}; write lists and mappings out flat")
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        problem = Problem("", f"holds a value that cannot be read as its YAML tag says: {error}")
    finally:
        if loader is not None:
            loader.dispose()
    return None, lines, [problem]


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    line = mark.line + 1 if mark else None
    position = getattr(error, "position", None)
    if line is None and isinstance(position, int):
        line = text.count("\n", 0, position) + 1
    hint = "; indent with spaces, not tabs" if "\\t" in what else ""
    return Problem("", f"is not YAML: {what}{hint}", line)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _too_large(root: yaml.Node) -> Problem | None:
    """Refuse aliases that multiply and nesting without end, before anything walks them."""
    known: dict[int, tuple[int, int]] = {}
    above: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """How many values, and how many levels of them."""
        if id(node) in above:
            raise RecursionError
        if id(node) not in known:
            above.add(id(node))
            below = [measure(child) for child in _children(node)]
            above.discard(id(node))
            height = 1 + max((levels for _, levels in below), default=0)
            known[id(node)] = 1 + sum(count for count, _ in below), height
        return known[id(node)]

    total, levels = measure(root)
    if levels > DEEPEST:
        raise RecursionError
    if total <= _MOST_VALUES:
        return None
    message = f"holds {total} values once its aliases are followed; at most {_MOST_VALUES} are read"
    return Problem("", message)


def _walk(
    loader: yaml.SafeLoader, node: yaml.Node, path: str
) -> Iterator[tuple[str, int, str | None]]:
    """Every path with its line, and what is wrong there; call only on what is small enough."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        yield path, line, _unreadable(loader, node)
        return
    yield path, line, None
    if isinstance(node, yaml.MappingNode):
        given = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            below, line = f"{path}.{name}" if path else name, key.start_mark.line + 1
            yield below, line, "is given twice; keep one" if name in given else None
            given.add(name)
            yield from _walk(loader, value, below)
    else:
        for i, value in enumerate(node.value):
            yield from _walk(loader, value, f"{path}[{i}]")


def _unreadable(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str | None:
    """Why a scalar is not what it looks like or is tagged as (a 30th of February, say)."""
    number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if number and ":" in node.value and len(node.value) > _LONGEST_NUMBER:
        return f"cannot be read: is a number of {len(node.value)} characters; quote text"
    try:
        value = loader.construct_object(node)
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            return f"cannot be read: is a number of {value.bit_length()} bits; quote text"
    except yaml.YAMLError as error:
        return f"cannot be read: {getattr(error, 'problem', None) or error}; quote text"
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        return f"cannot be read: {error}; quote text"
    return None


def _unshared(value: Any) -> Any:
    """A copy in which every alias is a value of its own."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value
