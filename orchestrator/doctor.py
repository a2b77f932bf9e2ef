"""What works here and what does not: Python, packages, devices, Ray, the store, the data."""

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from orchestrator._checks_machine import MACHINE
from orchestrator._checks_store import STORE
from orchestrator._finding import Check, Finding, Place

__all__ = ["CHECKS", "Finding", "Place", "examine", "table"]

CHECKS: Mapping[str, Check] = {**MACHINE, **STORE}
_STYLES = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


def examine(place: Place, checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """Make every check; one that itself breaks is a finding too, and stops no other."""
    for name, check in checks.items():
        place.told(name)
        try:
            yield from check(place)
        except Exception as error:
            found = f"the check broke: {type(error).__name__}: {error}".split("\n", 1)[0]
            yield Finding(name, "FAIL", found, "a fault of this check or of what it looks at")


def table(findings: list[Finding]) -> Table:
    """The findings as a person reads them."""
    made = Table(title="sfumato doctor", title_justify="left")
    for column in ("what", "state"):
        made.add_column(column, no_wrap=True)
    for column in ("found", "remedy"):
        made.add_column(column, overflow="fold")
    for finding in findings:
        state = Text(finding.state, style=_STYLES[finding.state])
        made.add_row(finding.what, state, finding.found, finding.remedy)
    return made
