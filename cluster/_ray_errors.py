"""What Ray says went wrong, in a line for a person."""

from ray.exceptions import RayError

__all__ = ["INSTALL", "lost_line", "no_memory", "resources", "task_line"]

INSTALL = (
    "Install Sfumato, the same version, into the Python environment of every node "
    "(a driver that finds it only through its working directory or sys.path is not enough)."
)


def task_line(error: RayError) -> str:
    cause = getattr(error, "cause", None)
    cause = error if cause is None else cause
    message = str(cause).strip()
    if "No module named" in message or "ImportError" in message:
        return f"{message.rpartition(chr(10))[2]}. {INSTALL}"
    return f"{type(cause).__name__}: {message.partition(chr(10))[0]}"


def lost_line(error: RayError) -> str:
    # Ray indents identifiers and adds advice for people running Ray by hand; the rest says why.
    text = " ".join(line for line in str(error).splitlines() if not line.startswith("\t"))
    text = text.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0]
    text = text.partition(" OOM kill reason")[0]
    return f"{type(error).__name__}: {text[:400]}"


def no_memory(error: RayError) -> bool:
    """Whether Ray put a worker out because its node ran out of memory."""
    text = str(error)
    return "OutOfMemory" in type(error).__name__ or "running low on memory" in text


def resources(of: dict[str, float]) -> str:
    return ", ".join(f"{of.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
