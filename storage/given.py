"""A split that a column of the dataset gives: whose record trained what is known, not drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage._groups import Flags, Rows, canonical, divide, permutation
from storage.splits import Split, assemble, role_parts

__all__ = ["GIVEN_ROLES", "counted", "given_roles", "given_split", "straddling"]

# First what decides: a record that trained the model is a member, whatever else it is called.
GIVEN_ROLES = ("members", "reference", "nonmembers")
_FEWEST = 10


def given_split(
    groups: NDArray[np.integer[Any]],
    values: NDArray[np.str_],
    meaning: Mapping[str, Sequence[str]],
    *,
    column: str,
    known: float = 0.5,
    seed: int,
    dedup: Literal["group", "drop"] = "group",
) -> Split:
    """Divide the roles that a column gives into their parts.

    Who is a member does not depend on the seed; which members the attacker knows, and every order,
    does. Parts have the sizes of `splits.make_split`. A row without a role is population, unless
    it equals one with a role: then it is left out, as it can be neither population nor its twin.

    Args:
        groups: [n], equal numbers mark duplicates.
        values: [n], what the column says, as text.
        meaning: the values that stand for each of `GIVEN_ROLES`; all others stand for no role.
        column: its name, for messages.
        known: in (0, 1), the attacker's share of members and of nonmembers.
        seed: any integer.
        dedup: "group" refuses equal records in different roles; "drop" keeps one row of each
            record, the first of those that come first in `GIVEN_ROLES`.

    Raises:
        ValueError: if a value is nowhere in the column, equal records have different roles, or a
            role has too few records.

    Source: methods.md 2.1 (duplicates), 2.3 (partition).
    """
    if len(values) != len(groups):
        raise ValueError(f"{column} has {len(values)} values for {len(groups)} rows; give each one")
    if not 0 < known < 1:
        raise ValueError(f"known is {known}; the attacker's share must lie between 0 and 1")
    given = given_roles(values, meaning, column=column)
    rank_of_row = _ranks(given)
    group_of_row, _, _ = canonical(groups)
    best, decides = _deciding(rank_of_row, group_of_row)
    if dedup == "drop":
        rows = np.flatnonzero(decides)
        kept = np.zeros(len(groups), dtype=bool)
        kept[rows[np.unique(group_of_row[rows], return_index=True)[1]]] = True
    else:
        _refuse_straddling(groups, given, values, column)
        kept = decides
    rows_of_group = np.bincount(group_of_row[kept], minlength=len(best))

    part_of_group = np.full(len(best), "population", dtype="U15")
    wanted = []
    for rank, role in enumerate(GIVEN_ROLES):
        of_role = np.flatnonzero(best == rank)
        num = int(rows_of_group[of_role].sum())
        if num < _FEWEST:
            one = "distinct records have" if dedup == "drop" else "rows have"
            raise ValueError(
                f"{num} {one} {column} = {' or '.join(map(repr, meaning[role]))}, the {role}; at "
                f"least {_FEWEST} are needed. Its values are {counted(values)}"
            )
        parts = role_parts(role, num, known)
        order = of_role[permutation(len(of_role), seed, f"given/{role}")]
        divided = divide(order, rows_of_group, list(parts.values()))
        for name, part in zip(parts, divided, strict=True):
            part_of_group[part] = name
        wanted.append(parts)
    part_of_row = np.where(kept, part_of_group[group_of_row], "")
    return assemble(part_of_row, wanted, rows_of_group, group_of_row, known=known, seed=seed)


def given_roles(
    values: NDArray[np.str_], meaning: Mapping[str, Sequence[str]], *, column: str
) -> NDArray[np.str_]:
    """The role of each row [n], of `GIVEN_ROLES`; empty where the value stands for none.

    Raises:
        ValueError: if a value of `meaning` is nowhere in the column.
    """
    given = np.full(len(values), "", dtype="U15")
    for role in GIVEN_ROLES:
        for value in meaning[role]:
            of_value = values == value
            if not of_value.any():
                raise ValueError(
                    f"no row has {column} = '{value}', the {role}; its values are "
                    f"{counted(values)}. Write {role}: and the value that stands for them"
                )
            given[of_value] = role
    return given


def counted(values: NDArray[np.str_]) -> str:
    """The commonest values of a column, each with its number of rows."""
    counts = Counter(values.tolist())
    shown = [f"'{value}' ({num})" for value, num in counts.most_common(6)]
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(shown) + more


def straddling(groups: NDArray[np.integer[Any]], given: NDArray[np.str_]) -> Flags:
    """Which rows [n] have a role and a duplicate in another role."""
    rank_of_row = _ranks(given)
    group_of_row, _, _ = canonical(groups)
    best, decides = _deciding(rank_of_row, group_of_row)
    loses = ~decides & (rank_of_row < len(GIVEN_ROLES))
    divided = np.zeros(len(best), dtype=bool)
    divided[group_of_row[loses]] = True
    return divided[group_of_row] & (rank_of_row < len(GIVEN_ROLES))


def _ranks(given: NDArray[np.str_]) -> Rows:
    rank_of_row = np.full(len(given), len(GIVEN_ROLES), dtype=np.int64)
    for rank, role in enumerate(GIVEN_ROLES):
        rank_of_row[given == role] = rank
    return rank_of_row


def _deciding(rank_of_row: Rows, group_of_row: Rows) -> tuple[Rows, Flags]:
    """The first rank of each group [G], and which rows have it [n]."""
    best = np.full(group_of_row.max() + 1, len(GIVEN_ROLES), dtype=np.int64)
    np.minimum.at(best, group_of_row, rank_of_row)
    return best, rank_of_row == best[group_of_row]


def _refuse_straddling(
    groups: NDArray[np.integer[Any]],
    given: NDArray[np.str_],
    values: NDArray[np.str_],
    column: str,
) -> None:
    rows = np.flatnonzero(straddling(groups, given))
    if not len(rows):
        return
    one = rows[0]
    other = next(row for row in rows if groups[row] == groups[one] and given[row] != given[one])
    raise ValueError(
        f"rows {one} and {other} are equal records, but {column} makes row {one} one of the "
        f"{given[one]} ('{values[one]}') and row {other} one of the {given[other]} "
        f"('{values[other]}'); {len(np.unique(groups[rows]))} records ({len(rows)} rows) are in "
        "more than one role. Remove them, or use dedup: drop, which keeps one row of each, the "
        "member if there is one"
    )
