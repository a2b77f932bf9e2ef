"""How a submitted experiment fares, in words and as an exit code."""

from datetime import UTC, datetime

from cluster.jobs import Job
from orchestrator._console import BAD_INPUT, FAILED, INTERRUPTED, OK
from orchestrator.progress import spell_seconds

__all__ = ["code_of", "duration", "how", "plain"]

_MEANT = {
    OK: "all done",
    FAILED: "some task failed, or could not start",
    BAD_INPUT: "bad input",
    INTERRUPTED: "interrupted",
}


def code_of(job: Job) -> int:
    if job.status == "stopped":
        return INTERRUPTED
    if job.exit_code in _MEANT:
        return job.exit_code
    return OK if job.status == "succeeded" else FAILED


def how(job: Job) -> str:
    """How a job ended, in our words where it is ours to say."""
    code = job.exit_code
    if job.status == "stopped":
        return "to be resumed by submitting it again"
    if not job.over:
        return job.message if job.status == "pending" else ""
    if code in _MEANT:
        return _MEANT[code]
    if code in (126, 127):
        return "the head's shell finds no such Python; give --python /PATH/bin/python"
    if code is not None:
        by = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process was ended by {by}; submitted again, it resumes"
    return job.message


def duration(job: Job) -> str:
    if job.started is None:
        return "-"
    return spell_seconds(max(0.0, ((job.ended or datetime.now(UTC)) - job.started).total_seconds()))


def plain(text: str) -> str:
    """Without control characters, as a log may hold anything."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
