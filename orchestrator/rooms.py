"""Who shares memory with whom, and what fits in beside what runs there."""

from dataclasses import dataclass, field

__all__ = ["Room", "Rooms"]


@dataclass
class Room:
    """A node's memory, or a GPU's, and the workers that share it.

    Attributes:
        capacity: bytes; 0 where nobody knows, and then everything fits.
        workers: those in it.
        needs: worker at work -> bytes its job is thought to need: 0 if it is not of this memory
            that it needs some, None for a worker's share if nothing is known of it.
        waiting: idle workers that take nothing until what runs here leaves room.
        claim: the job they wait for.
    """

    capacity: int
    workers: dict[str, None] = field(default_factory=dict)
    needs: dict[str, int | None] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    claim: str | None = None

    def fits(self, need: int | None) -> bool:
        """Whether a job fits in beside what runs; one alone always does."""
        if not self.capacity or not self.needs or need == 0:
            return True
        share = self.share
        thought = [share if known is None else known for known in (*self.needs.values(), need)]
        return sum(thought) <= self.capacity

    @property
    def share(self) -> int:
        """What each worker has if they divide the memory evenly."""
        return self.capacity // max(1, len(self.workers))


class Rooms:
    """The rooms of all workers there are."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._of: dict[str, str] = {}

    def __getitem__(self, worker: str) -> Room:
        return self._rooms[self._of[worker]]

    def enter(self, worker: str, name: str, capacity: int) -> None:
        """Note where a worker is. One in a room without a name shares with nobody."""
        name = name or f"of {worker}"
        self._of[worker] = name
        self._rooms.setdefault(name, Room(capacity)).workers[worker] = None

    def leave(self, worker: str) -> str | None:
        """Forget a worker; gives the job a room had claimed whose last worker this was."""
        name = self._of.pop(worker)
        room = self._rooms[name]
        room.workers.pop(worker)
        room.needs.pop(worker, None)
        room.waiting.pop(worker, None)
        if room.workers:
            return None
        del self._rooms[name]
        return room.claim
