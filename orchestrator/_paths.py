"""Who needs whom in a plan, and how long the paths through it are."""

from collections.abc import Collection, Mapping
from itertools import dropwhile

__all__ = ["priorities", "users_of"]


def users_of(inputs: Mapping[str, list[str]], known: Collection[str]) -> dict[str, list[str]]:
    """Who needs each job, and each of the jobs known before that somebody needs."""
    users: dict[str, list[str]] = {key: [] for key in inputs}
    for key, needs in inputs.items():
        for needed in needs:
            if needed not in users:
                if needed not in known:
                    raise ValueError(
                        f"job {key!r} needs {needed!r}, which is not in the plan: add it"
                    )
                users[needed] = []
            users[needed].append(key)
    return users


def priorities(
    seconds: Mapping[str, float], inputs: Mapping[str, list[str]], users: Mapping[str, list[str]]
) -> dict[str, float]:
    """Expected seconds from the start of each job to the end of the longest path through it."""
    left = {key: len(users[key]) for key in seconds}
    longest = dict.fromkeys(seconds, 0.0)
    ends = [key for key, count in left.items() if count == 0]
    priority: dict[str, float] = {}
    while ends:
        key = ends.pop()
        priority[key] = longest[key] + seconds[key]
        for needed in inputs[key]:
            if needed not in seconds:
                continue
            longest[needed] = max(longest[needed], priority[key])
            left[needed] -= 1
            if left[needed] == 0:
                ends.append(needed)
    if len(priority) < len(seconds):
        caught = next(key for key in seconds if key not in priority)
        path: dict[str, None] = {}
        while caught not in path:  # what was left over has a user that was left over too
            path[caught] = None
            caught = next(user for user in users[caught] if user not in priority)
        circle = [*dropwhile(lambda key: key != caught, path), caught][::-1]
        raise ValueError(f"these jobs need each other: {' needs '.join(map(repr, circle))}")
    return priority
