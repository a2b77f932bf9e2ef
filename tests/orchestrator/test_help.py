"""Help texts on a terminal of 80 columns, and the versions."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator._console import flowing
from orchestrator.cli import app

COMMANDS = [[c.name or c.callback.__name__] for c in app.registered_commands]
COMMANDS += [
    [group.name, command.name]
    for group in app.registered_groups
    for command in group.typer_instance.registered_commands
]
WIDTH = 80


def helped(*args):
    done = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": str(WIDTH), "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.output.splitlines()]


def test_every_command_is_looked_at():
    listed = {line.split()[1] for line in helped() if re.match(r"│ [a-z]+ ", line)}
    assert listed == {command[0] for command in COMMANDS}


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_fits_80_columns(command):
    lines = helped(*command)
    assert all(len(line) <= WIDTH for line in lines)
    # The column that explains options is the widest, and the one before it is not folded.
    for line in lines:
        if match := re.match(r"│ \*? *(--?[a-zA-Z-]+,?)* *(-h)? *\S+( \[\S+\])? +(?=[A-Z])", line):
            assert match.end() <= 48, line
    assert not re.search("<int|<float|<path", "\n".join(lines))
    # A paragraph goes on for as long as the next word fits.
    for line, following in pairwise(lines):
        if all(text.startswith(" ") and text.strip() for text in (line, following)):
            assert len(line) + 1 + len(following.split()[0]) > WIDTH - 2, (line, following)


@given(st.lists(st.lists(st.sampled_from(["a", "  b c", "d"]), min_size=1), min_size=1))
def test_paragraphs_flow_and_stay_apart(paragraphs):
    text = "\n\n".join("\n".join(lines) for lines in paragraphs)
    told = flowing(text).split("\n\n")
    assert [p.split() for p in told] == [" ".join(lines).split() for lines in paragraphs]
    assert all("\n" not in p for p in told)
    assert [p[:1] for p in told] == [lines[0][:1] for lines in paragraphs]  # examples are set in


def test_versions_are_told_without_loading_what_they_are_of():
    code = (
        "import sys; from orchestrator.cli import app; sys.argv = ['sfumato', '--version']\n"
        "try: app()\n"
        "finally: assert not {'torch', 'ray', 'pandas', 'pyarrow', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(part.rsplit(" ", 1) for part in done.stdout.strip().split(", "))
    assert told["Python"] == sys.version.split()[0]
    for name in ("torch", "ray"):
        assert told[name] == metadata.version(name)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert told["sfumato"] == project["version"]
