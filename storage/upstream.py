"""Where else artifacts are: what a folder of artifacts fetches from and hands on to."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Upstream"]


class Upstream(Protocol):
    """Another place of artifacts: a bucket, another folder, the driver of a run."""

    def fetch(self, key: str) -> dict[str, bytes]:
        """Every file of an artifact by name, task.json included.

        Raises:
            ArtifactMissing: it is not there, or not whole yet.
            ArtifactDamaged: what is there is not what was written.
            StoreUnwritable: the place cannot be reached.
        """

    def keep(self, key: str, files: Mapping[str, bytes]) -> None:
        """Keep an artifact for good; the first whole copy wins.

        Args:
            key: the task key.
            files: every file by name, task.json included.

        Raises:
            ArtifactDamaged: the files are not what task.json says.
            StoreUnwritable: the place takes no more.
        """

    def holds(self, key: str) -> bool:
        """Whether an artifact is there whole, judged without reading its payload.

        Raises:
            StoreUnwritable: the place cannot be reached.
        """
