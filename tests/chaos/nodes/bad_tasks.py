"""Tasks that kill their worker or never end. The nodes' PYTHONPATH has this folder."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from storage.artifacts import Draft
from tasks.base import Task
from tasks.worker import Bench


@dataclass(frozen=True, eq=False)
class Bad(Task):
    """Says what it is about to do, and does it.

    Attributes:
        what: a poison kills its worker each time.
        marks: a folder that every node sees, for those that are bad only once.
        needs: what must be done before.
    """

    VERSION: ClassVar[int] = 1
    GPU: ClassVar[bool] = False

    what: Literal["good", "poison", "hangs", "hangs once"]
    marks: str = ""
    needs: tuple[Task, ...] = ()

    @property
    def name(self) -> str:
        return self.what

    @property
    def dataset(self) -> str:
        return "none"

    def run(self, bench: Bench, draft: Draft) -> None:
        print(f"{self.what} {self.seed} in process {os.getpid()}", flush=True)  # noqa: T201
        for needed in self.needs:
            bench.open(needed)
        if self.what == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        mark = Path(self.marks) / self.key
        if self.what == "hangs" or (self.what == "hangs once" and not mark.exists()):
            mark.write_text(str(os.getpid()))
            while True:
                signal.pause()
        draft.facts("made", {"seed": self.seed})
