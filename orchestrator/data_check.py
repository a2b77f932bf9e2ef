"""Is a dataset fit for a privacy experiment? Arrays in, findings out.

What would make every attack look good is a column that says who is a member, and every model a
column that says the class. Each column is asked alone; a run asks the inputs together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage._groups import chi2_p, class_counts
from storage.given import straddling

__all__ = [
    "Column",
    "Finding",
    "class_findings",
    "duplicate_findings",
    "label_findings",
    "membership_findings",
    "order_findings",
    "separation",
]

_SHOWN = 5
_LEAST_EXCESS = 0.05
_SIGMAS = 5.0  # 6e-7 two-sided: of thousands of columns none gets here by chance
_CLASS_LEVEL = 0.01  # the level of I6, methods.md 2.3
_TELLS = 0.98
_FEWEST = 10
_MOST_VALUES = 32


@dataclass(frozen=True)
class Finding:
    """One question and its answer: "risk" if results would mean nothing, "note" if good to know."""

    verdict: Literal["ok", "note", "risk"]
    what: str
    message: str


@dataclass(frozen=True, eq=False)
class Column:
    """A column of the checked rows.

    Attributes:
        name: in the file.
        values: [N] numbers or text.
        is_feature: a model sees it.
    """

    name: str
    values: NDArray[Any]
    is_feature: bool = True


def label_findings(columns: Sequence[Column], y_N: NDArray[np.int64]) -> Iterator[Finding]:
    """Columns that tell a class from all others: copies of the label, or what was made from it.

    Half of the rows says which class is commonest for each value (of many values: which the nearest
    value has), the other half how often that holds.

    Args:
        columns: of the rows of `y_N`, in random order.
        y_N: classes.
    """
    found, best = [], (0.0, "")
    for column in columns:
        told, accuracy = _told_classes(column.values, y_N)
        if column.is_feature:
            best = max(best, (accuracy, column.name))
        if len(told):
            found.append((column, told, accuracy))
    for column, told, accuracy in found[:_SHOWN]:
        which = "every class" if len(told) == len(np.unique(y_N)) else f"class {_some(told)}"
        message = f"column '{column.name}' alone tells {which} from the others"
        if column.is_feature:
            message += f" (accuracy {accuracy:.3f}); drop it if it was made from the label"
            yield Finding("risk", "label", message)
        else:
            yield Finding("note", "label", f"{message}; it is no feature, so no model sees it")
    yield from _more("label", [column for column, _, _ in found[_SHOWN:]])
    if not any(column.is_feature for column, _, _ in found):
        closest = f"; '{best[1]}' comes closest, accuracy {best[0]:.3f}" if best[1] else ""
        yield Finding("ok", "label", f"no feature alone gives a class away{closest}")


def membership_findings(
    columns: Sequence[Column], is_member_N: NDArray[np.bool_]
) -> Iterator[Finding]:
    """Columns that tell members from nonmembers without any model.

    Args:
        columns: of members and nonmembers alone, in random order.
        is_member_N: who is a member; both kinds present.
    """
    chance = _by_chance(is_member_N)
    found = []
    best = (0.5, "")
    for column in columns:
        auc = separation(column.values, is_member_N)
        best = max(best, (auc, column.name))
        if auc > chance:
            found.append((auc, column))
    found.sort(key=lambda pair: -pair[0])
    for auc, column in found[:_SHOWN]:
        message = (
            f"column '{column.name}' alone tells members from nonmembers: AUC {auc:.3f}, by chance "
            f"at most {chance:.3f}"
        )
        if column.values.dtype.kind != "f" and len(np.unique(column.values)) == len(column.values):
            message += "; all its values differ, as an identifier's do"
        if column.is_feature:
            message += (
                ". Every attack would get this for nothing: drop it, or name the true features "
                "f000, f001, ... so that it stands beside them"
            )
        else:
            message += (
                ". No model sees it, but members and nonmembers were not drawn alike, which "
                "attacks may mistake for memory: draw both at random from the same records"
            )
        yield Finding("risk", "membership", message)
    yield from _more("membership", [column for _, column in found[_SHOWN:]])
    if not found:
        closest = f"; '{best[1]}' comes closest, AUC {best[0]:.3f}" if best[1] else ""
        yield Finding("ok", "membership", f"no column alone tells members{closest}")


def class_findings(
    y: NDArray[np.int64],
    rows: NDArray[np.int64],
    is_member_N: NDArray[np.bool_],
    *,
    drawn: bool,
) -> Iterator[Finding]:
    """Whether the class tells membership (invariant I6).

    Args:
        y: [n], the classes of the dataset.
        rows: [N] row numbers of distinct members and nonmembers.
        is_member_N: who of them is a member.
        drawn: by us, at random, so that it can only be chance.
    """
    p = chi2_p(class_counts(y, rows, is_member_N))
    if p > _CLASS_LEVEL:
        yield Finding("ok", "classes", f"class does not tell membership (chi-squared p = {p:.2g})")
        return
    message = f"class tells membership (chi-squared p = {p:.2g}, more than {_CLASS_LEVEL} asked)"
    if drawn:
        chance = "by chance, as under one seed in a hundred; results may be flagged I6"
        yield Finding("note", "classes", f"{message} {chance}")
    else:
        yield Finding("risk", "classes", f"{message}; give both sides alike shares of every class")


def duplicate_findings(
    groups: NDArray[np.int64], given: NDArray[np.str_], dedup: str = "group"
) -> Iterator[Finding]:
    """Equal records in different roles (invariant I5).

    Args:
        groups: [n], rows with equal numbers are equal records.
        given: [n], "members", "reference", "nonmembers" or empty.
        dedup: how a run would treat them.
    """
    rows = np.flatnonzero(straddling(groups, given))
    if not len(rows):
        yield Finding("ok", "duplicates", "no record has two roles")
        return
    one = rows[0]
    other = next(row for row in rows if groups[row] == groups[one] and given[row] != given[one])
    message = (
        f"{len(np.unique(groups[rows]))} records ({len(rows)} rows) have more than one role, first "
        f"row {one} ({given[one]}) and row {other} ({given[other]})"
    )
    if dedup == "drop":
        yield Finding("note", "duplicates", f"{message}; dedup: drop keeps one row of each")
    else:
        yield Finding("risk", "duplicates", f"{message}; remove them, or use dedup: drop")


def order_findings(y: NDArray[np.int64]) -> Iterator[Finding]:
    """A note if the file is sorted by class."""
    if (np.diff(y) >= 0).all() or (np.diff(y) <= 0).all():
        message = "the file is sorted by class; splits are drawn at random, so sizes are safe"
        yield Finding("note", "order", f"{message}, but do not make roles of its first rows")


def separation(values: NDArray[Any], is_member_N: NDArray[np.bool_]) -> float:
    """How well a column alone tells members from nonmembers, 0.5..1.

    The larger of two: the area under the ROC curve of its order, either way up, which sees shifts;
    and the balanced accuracy of telling by value or range of values, fitted on every second row
    and judged on the others, which sees categories and blocks.

    Args:
        values: [N] numbers or text, in random order; missing numbers count as the largest.
        is_member_N: bool [N], both kinds present.
    """
    code_N, counts = _codes(values)
    members = np.bincount(code_N[is_member_N], minlength=len(counts))
    others = counts - members
    below = np.cumsum(others) - others
    auc = float(members @ (below + others / 2)) / float(members.sum() * others.sum())
    bin_N = _binned(code_N, counts, _MOST_VALUES)
    fit, test = _tables(bin_N, is_member_N.astype(np.int64), 2)
    # Rates, not counts: the rarer kind weighs as much.
    fit_rate, test_rate = (
        table / table.sum(axis=0).clip(min=1) for table in (fit.astype(float), test.astype(float))
    )
    called_member = fit_rate[:, 1] > fit_rate[:, 0]
    accuracy = (test_rate[called_member, 1].sum() + test_rate[~called_member, 0].sum()) / 2
    return float(max(auc, 1 - auc, accuracy))


def _by_chance(is_member_N: NDArray[np.bool_]) -> float:
    """What `separation` does not exceed where a column says nothing of membership."""
    num, num_non = int(is_member_N.sum()), int((~is_member_N).sum())
    # Mann and Whitney's variance, without ties; half of the rows judge the accuracy.
    of_auc = np.sqrt((num + num_non + 1) / (12 * num * num_non))
    of_accuracy = np.sqrt((1 / num + 1 / num_non) / 8)
    return 0.5 + max(_LEAST_EXCESS, _SIGMAS * float(max(of_auc, of_accuracy)))


def _told_classes(values: NDArray[Any], y_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    """The classes that a column tells from all others, and how often it tells the right one."""
    num_classes, actual_M = int(y_N.max()) + 1, y_N[1::2]
    guess_M = _guesses(values, y_N, num_classes)
    is_hit = guess_M == actual_M
    actual, guessed, hits = (
        np.bincount(classes, minlength=num_classes)
        for classes in (actual_M, guess_M, actual_M[is_hit])
    )
    # Both rates: of a class that nearly every record has, being right often says nothing.
    caught = hits / actual.clip(min=1) - (guessed - hits) / (len(y_N) // 2 - actual).clip(min=1)
    right = hits / guessed.clip(min=1)
    told = (actual >= _FEWEST) & (caught >= _TELLS) & (right >= _TELLS)
    return np.flatnonzero(told), float(is_hit.mean())


def _guesses(values: NDArray[Any], y_N: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """The classes of the odd rows as the even rows would have them."""
    code_N, counts = _codes(values)
    fit, test = slice(0, None, 2), slice(1, None, 2)
    if len(counts) <= max(_MOST_VALUES, 4 * num_classes):
        table, _ = _tables(code_N, y_N, num_classes)
        commonest: NDArray[np.int64] = table.argmax(axis=1)[code_N[test]]
        return commonest
    # Of many values few come twice: the nearest value of an even row stands for them.
    number_N = values.astype(np.float64) if values.dtype.kind in "biuf" else code_N.astype(float)
    order = np.argsort(number_N[fit], kind="stable")
    known = number_N[fit][order]
    above = np.searchsorted(known, number_N[test]).clip(1, len(known) - 1)
    with np.errstate(invalid="ignore"):  # infinities
        is_below = number_N[test] - known[above - 1] < known[above] - number_N[test]
    nearest: NDArray[np.int64] = y_N[fit][order][above - is_below]
    return nearest


def _codes(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rank of each row's value among the distinct ones [N], and rows per distinct value."""
    _, code_N, counts = np.unique(values, return_inverse=True, return_counts=True)
    return code_N.astype(np.int64), counts.astype(np.int64)


def _binned(code_N: NDArray[np.int64], counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Values as they are if they are few, else ranges of about as many rows."""
    if len(counts) <= most:
        return code_N
    bin_of_value: NDArray[np.int64] = (np.cumsum(counts) - counts) * most // counts.sum()
    return bin_of_value[code_N]


def _tables(
    bin_N: NDArray[np.int64], class_N: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows per bin and class, of the even rows and of the odd ones."""
    num_bins = int(bin_N.max()) + 1
    cell_N = bin_N * num_classes + class_N
    fit, test = (
        np.bincount(cell_N[half::2], minlength=num_bins * num_classes).reshape(num_bins, -1)
        for half in (0, 1)
    )
    return fit, test


def _more(what: str, columns: Sequence[Column]) -> Iterator[Finding]:
    if columns:
        verdict: Literal["note", "risk"] = (
            "risk" if what == "membership" or any(c.is_feature for c in columns) else "note"
        )
        names = _some([column.name for column in columns])
        yield Finding(verdict, what, f"so do {len(columns)} more columns: {names}")


def _some(items: Sequence[Any] | NDArray[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
