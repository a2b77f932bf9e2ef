"""Links that lead out of a store: through one, what is written or removed would be somebody's."""

import os
from pathlib import Path

__all__ = ["stray"]

# Where names are made, replaced and removed. Parts and artifacts themselves may be links: they are
# read, and a link is removed or replaced as a link.
_PARENTS = (".", "artifacts", "tables", "logs", "experiments", "experiments/*", "mlflow-artifacts")


def stray(root: Path) -> Path | None:
    """The first folder or file of a store's own that is a link out of it, None if there is none.

    The root itself may be a link.
    """
    inside = os.path.realpath(root)
    for pattern in _PARENTS:
        for folder in (root,) if pattern == "." else sorted(root.glob(pattern)):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                # `realpath` also follows a link whose target is not there yet.
                if path.is_symlink() and not _within(os.path.realpath(path), inside):
                    return path
    return None


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
