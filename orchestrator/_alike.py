"""Which tasks differ in their seed only."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

DIGITS = 12


class Alike:
    """Short hashes of tasks that leave out seeds, and what follows from them: rows drawn.

    Tasks have one hash if they, and all they are made from, agree in kind, version and every other
    setting, data included. Read from descriptions, so that it serves plans and stores alike.

    Args:
        describe: key -> the content of the task's description, or None where that is lost.
    """

    def __init__(self, describe: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._describe = describe
        self._known: dict[str, str] = {}

    def columns(self, kind: str, key: str) -> dict[str, str]:
        """What a cell says of its settings; empty where a description is lost.

        Args:
            kind: of the cell.
            key: of the task that fills it.
        """
        try:
            # A worst case is over seeds: over others it is another.
            settings = key[:DIGITS] if kind == "worst" else self._digest(key)[:DIGITS]
            return {"settings": settings, "service": self._service(key)[:DIGITS]}
        except LookupError:
            return {"settings": "", "service": ""}

    def _service(self, key: str) -> str:
        """The hash of the answers a task works on; empty if it works on none."""
        fields = self._told(key)["fields"]
        if "attacks" in fields:
            return self._service(fields["attacks"][0]["task"])
        return self._digest(fields["answers"]["task"]) if "answers" in fields else ""

    def _told(self, key: str) -> Mapping[str, Any]:
        told = self._describe(key)
        if told is None:
            raise LookupError(key)
        return told

    def _digest(self, key: str) -> str:
        if key not in self._known:
            told = dict(self._told(key))
            fields = {n: v for n, v in told["fields"].items() if n not in ("seed", "seeds")}
            text = json.dumps(self._apart({**told, "fields": fields}), sort_keys=True)
            self._known[key] = sha256(text.encode()).hexdigest()
        return self._known[key]

    def _apart(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._apart(item) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"task"}:
            return {"task": self._digest(value["task"])}
        if set(value) == {"rows", "count"}:
            return "rows"
        return {name: self._apart(inner) for name, inner in value.items()}
