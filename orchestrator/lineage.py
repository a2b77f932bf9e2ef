"""A task, its figures and the chain it was made from, as a person reads them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from orchestrator._problem import readable
from orchestrator.flags import explained
from orchestrator.show import Shown, Step

__all__ = ["print_shown"]

_ALIKE = 3  # so many inputs that differ in seed and number only are shown as one
_NUMBERING = ("index", "block")
# Said in the title or in the chain.
_NOT_FIGURES = {"task_key", "dataset", "dataset_hash", "seed", "defense_params", "attack_params"}
_NOT_FIGURES |= {"device", "worker", "created_at", "duration_s"}
_STATES = {"complete": "", "damaged": "bold red", "absent": "bold red"}


def print_shown(console: Console, shown: Shown, *, every: bool) -> None:
    """Print a task: its figures, who uses it, its chain, and what it was computed with.

    Args:
        console: where to.
        shown: the task.
        every: show each of many alike inputs, as shadow models are.
    """
    step = shown.step
    console.print(_title(step), soft_wrap=True)
    console.print(f"key {step.key}", soft_wrap=True)
    for table, rows in shown.figures.items():
        console.print(_figures(table, rows))
        if meant := explained(flag for row in rows for flag in row.get("flags", ())):
            console.print(meant)
    if shown.failure:
        attempts = shown.failure.get("attempts", 1)
        console.print(
            f"failed after {attempts} attempts: {readable(str(shown.failure.get('error', '')))}"
        )
    _print_use(console, shown)
    console.print()
    console.print("made from" if step.inputs else "made from no other task")
    console.print(_Drawn(shown.chain, every).tree(step.key))
    console.print()
    for versions, count in shown.versions:
        console.print(f"{_tasks(count)} computed with {_versions(versions)}", soft_wrap=True)
    for warning in shown.warnings:
        console.print(Text(f"note: {warning}", style="yellow"), soft_wrap=True)


def _title(step: Step) -> Text:
    seed = "" if step.seed is None else f"seed {step.seed}"
    about = ", ".join(word for word in (step.dataset, seed) if word)
    text = Text(readable(f"{step.kind or 'a task'} {step.name}".rstrip()), style="bold")
    return text.append(f"  {readable(about)}", style="not bold")


def _figures(table: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row as names and values, an interval beside its figure; several as they are."""
    names = list(dict.fromkeys(n for row in rows for n in row if n not in _NOT_FIGURES))
    if len(rows) > 1:
        grid = Table(title=table, title_justify="left")
        for name in names:
            grid.add_column(name, overflow="fold")
        for row in rows:
            grid.add_row(*(_value(row.get(name)) for name in names))
        return grid
    (row,) = rows
    grid = Table(title=table, title_justify="left", show_header=False)
    grid.add_column()
    grid.add_column(overflow="fold")
    for name in names:
        head, _, tail = name.rpartition("_")
        if tail in ("low", "high") and head in row:
            continue
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        interval = "" if low is None or high is None else f"  [{_value(low)}, {_value(high)}]"
        grid.add_row(name, _value(row[name]) + interval)
    return grid


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "-"
    return "-" if value is None else readable(str(value))


def _print_use(console: Console, shown: Shown) -> None:
    for cell in shown.cells:
        what = cell.get("attack") or cell.get("kind", "")
        where = f"{cell.get('dataset')} seed {cell.get('seed')}, {cell.get('label')}, {what}"
        status = f"{cell.get('status')}{'' if cell['current'] else ', not asked for any more'}"
        console.print(readable(f"fills a cell of {cell['experiment']}: {where} ({status})"))
    for experiment, count in shown.served.items():
        console.print(f"{count} cells of {experiment} rest on it")
    if not shown.cells and not shown.served:
        console.print("no cell of an experiment in this store rests on it")


@dataclass
class _Drawn:
    """The chain as a tree in which every task stands once."""

    chain: Mapping[str, Step]
    every: bool
    seen: set[str] = field(default_factory=set)

    def tree(self, key: str) -> Tree:
        tree = Tree(self._label("", [key]))
        self._grow(tree, key)
        return tree

    def _grow(self, tree: Tree, key: str) -> None:
        self.seen.add(key)
        for role, keys in self._grouped(self.chain[key].inputs):
            branch = tree.add(self._label(role, keys))
            if keys[0] not in self.seen:
                self._grow(branch, keys[0])

    def _grouped(self, inputs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
        """Inputs by role; many that differ in seed and number only together."""
        alike: dict[tuple[str, str], list[str]] = {}
        for role, key in dict.fromkeys(inputs):
            step = self.chain[key]
            settings = {n: v for n, v in step.settings.items() if n not in _NUMBERING}
            like = json.dumps([step.kind, step.name, settings], sort_keys=True)
            alike.setdefault((role, like), []).append(key)
        for (role, _), keys in alike.items():
            if len(keys) >= _ALIKE and not self.every:
                yield role, keys
            else:
                yield from ((role, [key]) for key in keys)

    def _label(self, role: str, keys: Sequence[str]) -> Text:
        step = self.chain[keys[0]]
        text = Text(f"{role}: " if role else "", style="dim", overflow="fold")
        if len(keys) > 1:
            steps = [self.chain[key] for key in keys]
            states = ", ".join(f"{n} {s}" for s, n in Counter(s.state for s in steps).items())
            seconds = sum(float(s.measured.get("duration_s", 0)) for s in steps)
            each = f"{step.kind} {step.name}".rstrip()
            text.append(f"{len(keys)} x {each}", style="not dim bold")
            text.append(f"  {states}, {seconds:.1f} s in all, the first:\n", style="not dim")
        text.append(f"{step.kind or 'unknown'} {step.name}".rstrip(), style="not dim bold")
        text.append(f"  {step.key[:12]}", style="not dim cyan")
        if keys[0] in self.seen:
            return text.append("  see above", style="not dim")
        text.append(f"  {step.state}", style=f"not dim {_STATES[step.state]}")
        text.append(f"  {_when(step)}".rstrip(), style="not dim")
        settings = [f"{n}={_setting(v)}" for n, v in step.settings.items() if v not in (None, [])]
        seed = [] if step.seed is None else [f"seed={step.seed}"]
        version = [] if step.version is None else [f"version={step.version}"]
        return text.append("\n" + "  ".join([*seed, *settings, *version]), style="dim")


def _when(step: Step) -> str:
    measured = step.measured
    if "duration_s" not in measured:
        return ""
    where = f"{measured.get('worker', '?')} ({measured.get('device', '?')})"
    when = str(measured.get("created_at", ""))[:19].replace("T", " ")
    return f"{float(measured['duration_s']):.2f} s on {where}, {when} UTC"


def _setting(value: Any) -> str:
    """A setting of a description in few words; what is left out is empty or repeats its name."""
    if isinstance(value, list):
        return f"[{', '.join(map(_setting, value))}]"
    if not isinstance(value, dict):
        return str(value)
    match value:
        case {"type": kind, "version": version, "fields": fields}:
            inner = " ".join(f"{n}={_setting(v)}" for n, v in fields.items() if v not in (None, []))
            return f"{kind.rpartition('.')[2]}({inner}; version {version})".replace("(; ", "(")
        case {"dataset": name, "content": content}:
            return f"{name} (content {content[:12]})"
        case {"rows": digest, "count": count}:
            return f"{count} rows ({digest[:12]})"
        case {"task": key}:
            return str(key[:12])
    return "{" + ", ".join(f"{name}: {_setting(inner)}" for name, inner in value.items()) + "}"


def _versions(versions: Mapping[str, Any] | None) -> str:
    if versions is None:
        return "unknown versions"
    packages = dict(versions["packages"])
    ours = f"sfumato {packages.pop('sfumato', '?')}"
    commit = versions.get("commit")
    found = [f"{ours} (commit {commit})" if commit else ours, f"Python {versions['python']}"]
    return ", ".join([*found, *(f"{name} {version}" for name, version in packages.items())])


def _tasks(count: int) -> str:
    return "1 task was" if count == 1 else f"{count} tasks were"
