"""Seeded, disjoint data roles, and the sets an attack is judged on.

Roles (methods.md 2.3): members (D1), nonmembers (D3) and reference (D2), `untrained` groups for the
null (2.5), and the population, which is everything left. Everything here is row numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage._groups import Flags, Rows, canonical, divide, permutation, take

__all__ = ["ROLES", "Judge", "Sizes", "Split", "assemble", "make_split", "role_parts"]

Judge = Literal["members", "reference", "untrained", "defender"]

# What a defender's own attacker is told of D1 and of the reference it may fit on.
_DEFENDERS_SHARE = 0.5

# Every set a row can be in; pairwise disjoint.
ROLES = (
    *(f"{side}_{part}" for side in ("members", "nonmembers") for part in ("fit", "cal", "eval")),
    *("reference_fit", "reference_val", "untrained_a", "untrained_b", "population"),
)


@dataclass(frozen=True)
class Sizes:
    """Rows wanted for each role; `untrained` is the size of each of two extra fresh groups."""

    members: int
    reference: int
    nonmembers: int
    untrained: int = 0


@dataclass(frozen=True, eq=False)
class Split:
    """Who is what: pairwise disjoint int64 row numbers, each set in a random order.

    The members, and their order, do not depend on `known` nor on the other sizes, the nonmembers
    not on the reference, nothing on `untrained`: experiments that vary those share their targets.

    Attributes:
        groups: int64 [n], rows with equal numbers are duplicates of each other.
        known_share: the attacker's share of members, of nonmembers, and (judge "reference") of D2;
            a defender's own attacker (judge "defender") knows half, whatever this is.
        seed: of every order and subsample below.
    """

    members_fit: Rows
    members_cal: Rows
    members_eval: Rows
    nonmembers_fit: Rows
    nonmembers_cal: Rows
    nonmembers_eval: Rows
    reference_fit: Rows
    reference_val: Rows
    untrained_a: Rows
    untrained_b: Rows
    population: Rows
    groups: Rows
    known_share: float
    seed: int

    @property
    def members(self) -> Rows:
        """D1, the target's training rows."""
        return self._shuffled("members", self.members_fit, self.members_cal, self.members_eval)

    @property
    def nonmembers(self) -> Rows:
        """D3, rows the defender never touches."""
        parts = (self.nonmembers_fit, self.nonmembers_cal, self.nonmembers_eval)
        return self._shuffled("nonmembers", *parts)

    @property
    def reference(self) -> Rows:
        """D2, the defender's rows that never train the target."""
        return self._shuffled("reference", self.reference_fit, self.reference_val)

    def roles(self) -> dict[str, Rows]:
        """The eleven disjoint sets by name."""
        return {name: getattr(self, name) for name in ROLES}

    def role_of(self, rows: Rows) -> NDArray[np.str_]:
        """Names of the roles of `rows`; empty for a row that dedup "drop" left out."""
        names = np.full(len(self.groups), "", dtype="U15")
        for name, of_role in self.roles().items():
            names[of_role] = name
        return names[rows]

    def judged(self, judge: Judge = "members") -> tuple[Rows, Flags]:
        """The records an attack is judged on, and their membership.

        One record (the lowest row) of each duplicate group, as many members as non-members (the
        larger side is subsampled), in a random order.

        Args:
            judge: "members" is members_eval against nonmembers_eval. "reference" takes the unknown
                share of D2 for members (PURIFIER Table 7). "untrained" takes two groups nobody
                trained on, the first arbitrarily called members: the null of methods.md 2.5.
                "defender" is half of D1 against reference_val, all of which a defender owns: what
                it may tune by (10.3).

        Returns:
            Rows int64 [N] and is_member bool [N], N even.

        Raises:
            ValueError: if the split has no such records.
        """
        if judge == "untrained":
            positive, negative = self.untrained_a, self.untrained_b
        elif judge == "reference":
            positive, negative = self._divided_reference()[2], self.nonmembers_eval
        elif judge == "defender":
            positive, negative = self._defenders()[0][2], self.reference_val
        else:
            positive, negative = self.members_eval, self.nonmembers_eval
        if not min(len(positive), len(negative)):
            short = "reference" if judge == "defender" else judge
            raise ValueError(
                f"judge '{judge}' has no records to judge in this split; enlarge sizes.{short}"
            )
        sides = []
        for name, rows in (("positive", positive), ("negative", negative)):
            rows = np.sort(rows)
            first = np.unique(self.groups[rows], return_index=True)[1]
            sides.append(self._shuffled(f"judged/{judge}/{name}", rows[first]))
        num = min(map(len, sides))
        return self._labelled(f"judged/{judge}", sides[0][:num], sides[1][:num])

    def known(self, judge: Judge = "members") -> tuple[Rows, Flags, Rows, Flags]:
        """The records whose membership the attacker knows when judged by `judge`.

        Returns:
            Rows to fit on and their membership, then rows to calibrate on and theirs; members and
            non-members shuffled together, not balanced. With "reference" the members come from
            the known share of D2; with "untrained" they are the usual ones. With "defender" they
            are half of D1, against half of reference_fit, whatever `known_share` is.
        """
        fit, cal = self.members_fit, self.members_cal
        other_fit, other_cal = self.nonmembers_fit, self.nonmembers_cal
        if judge == "reference":
            fit, cal, _ = self._divided_reference()
        elif judge == "defender":
            (fit, cal, _), (other_fit, other_cal, _) = self._defenders()
        return (
            *self._labelled(f"known/{judge}/fit", fit, other_fit),
            *self._labelled(f"known/{judge}/cal", cal, other_cal),
        )

    def population_of(self, judge: Judge = "members") -> Rows:
        """The rows of no role that the attacker of a judge holds; a defender's own has none."""
        return self.population[:0] if judge == "defender" else self.population

    def _divided_reference(self) -> list[Rows]:
        """D2 as the attacker divides it (fit, cal, eval), across the defender's fit and val."""
        return self._divided("reference/known", self.reference, self.known_share)

    def _defenders(self) -> tuple[list[Rows], list[Rows]]:
        """D1 and reference_fit as a defender divides them for an attacker of its own."""
        return (
            self._divided("defender/members", self.members, _DEFENDERS_SHARE),
            self._divided("defender/reference", self.reference_fit, _DEFENDERS_SHARE),
        )

    def _divided(self, purpose: str, rows: Rows, known: float) -> list[Rows]:
        """Rows as fit, cal and the unknown rest, duplicate groups whole."""
        ids, inverse = np.unique(self.groups[rows], return_inverse=True)
        order = permutation(len(ids), self.seed, purpose)
        parts = divide(order, np.bincount(inverse), _known_sizes(len(rows), known))
        return [
            self._shuffled(f"{purpose}/{i}", rows[np.isin(inverse, part)])
            for i, part in enumerate(parts)
        ]

    def _shuffled(self, purpose: str, *parts: Rows) -> Rows:
        # Sorted first, so that how a role is divided leaves no trace in its order.
        rows = np.sort(np.concatenate(parts))
        return rows[permutation(len(rows), self.seed, purpose)]

    def _labelled(self, purpose: str, positive: Rows, negative: Rows) -> tuple[Rows, Flags]:
        rows = self._shuffled(purpose, positive, negative)
        return rows, np.isin(rows, positive)


def make_split(
    y: NDArray[np.integer[Any]],
    groups: NDArray[np.integer[Any]],
    sizes: Sizes,
    *,
    known: float = 0.5,
    seed: int,
    dedup: Literal["group", "drop"] = "group",
) -> Split:
    """Divide a dataset into its roles by one pooled permutation of its duplicate groups.

    A duplicate group goes to one part of one role as a whole. A role never exceeds its size; it
    falls short only when no group left would fit, hence by fewer rows than the largest group has,
    and never when all groups have one row. Of members and nonmembers the share `known` is the
    attacker's, 20 % of it for calibration; of the reference 20 % are `val`; evaluation (and
    `reference_fit`) takes what its role has left.

    The result depends on which rows are duplicates, on the sizes, `known`, `seed` and `dedup`; on
    labels it does not. It is the same under any NumPy, as only raw generator bits are used.

    Args:
        y: [n], classes; only their number is checked.
        groups: [n], equal numbers mark duplicates.
        sizes: rows per role.
        known: in (0, 1); the papers use 0.25, 0.5 and 0.75.
        seed: any integer.
        dedup: "group" keeps duplicates together; "drop" keeps the first row of each group, the
            others get no role.

    Raises:
        ValueError: if the sizes exceed the rows (the distinct records, under "drop"), or leave a
            part without a record.

    Source: methods.md 2.1 (duplicates), 2.3 (partition); sizes of PURIFIER Table 1 in 2.2.
    """
    if len(y) != len(groups):
        raise ValueError(f"{len(y)} labels but {len(groups)} duplicate groups; give one per row")
    if not 0 < known < 1:
        raise ValueError(f"known is {known}; the attacker's share must lie between 0 and 1")
    if dedup not in ("group", "drop"):
        raise ValueError(f"dedup is '{dedup}'; use 'group' or 'drop'")
    group_of_row, first_row, rows_of_group = canonical(groups)
    if dedup == "drop":
        rows_of_group = np.ones_like(rows_of_group)
    wanted = _wanted(sizes, known, int(rows_of_group.sum()), len(groups), dedup)

    order = permutation(len(first_row), seed, "groups")
    part_of_group = np.full(len(first_row), "population", dtype="U15")
    for parts in wanted:
        chosen, order = take(order, rows_of_group, sum(parts.values()))
        divided = divide(chosen, rows_of_group, list(parts.values()))
        for name, part in zip(parts, divided, strict=True):
            part_of_group[part] = name

    part_of_row = part_of_group[group_of_row]
    if dedup == "drop":
        kept = np.zeros(len(groups), dtype=bool)
        kept[first_row] = True
        part_of_row[~kept] = ""
    return assemble(part_of_row, wanted, rows_of_group, group_of_row, known=known, seed=seed)


def assemble(
    part_of_row: NDArray[np.str_],
    wanted: Sequence[Mapping[str, int]],
    rows_of_group: Rows,
    group_of_row: Rows,
    *,
    known: float,
    seed: int,
) -> Split:
    """The split in which every row has its part.

    Args:
        part_of_row: [n], names of `ROLES`, empty for a row left out.
        wanted: rows asked for, per part of each role; a part not named has none.
        rows_of_group: [G], the sizes of the duplicate groups.
        group_of_row: [n], rows with equal numbers are duplicates.
        known: see `Split.known_share`.
        seed: any integer.

    Raises:
        ValueError: if a part with rows wanted has none.
    """
    rows: dict[str, Rows] = {}
    for name in ROLES:
        rows[name] = np.flatnonzero(part_of_row == name)
        rows[name] = rows[name][permutation(len(rows[name]), seed, name)]
    for parts in wanted:
        for name, num in parts.items():
            if num and not len(rows[name]):
                raise ValueError(
                    f"no duplicate group fits into {name} ({num} rows wanted; the largest group "
                    f"has {rows_of_group.max()}); enlarge the role or use dedup 'drop'"
                )
    return Split(**rows, groups=group_of_row, known_share=known, seed=seed)


def _wanted(
    sizes: Sizes, known: float, available: int, num_rows: int, dedup: str
) -> list[dict[str, int]]:
    """Rows per part, a dictionary a role; the order of the roles is the order of filling."""
    for name in ("members", "reference", "nonmembers", "untrained"):
        if getattr(sizes, name) < 0:
            raise ValueError(f"sizes.{name} is {getattr(sizes, name)}; it must not be negative")
    total = sizes.members + sizes.reference + sizes.nonmembers + 2 * sizes.untrained
    if total > available:
        rows = f"{num_rows} rows"
        has = f"{available} distinct records in {rows}" if dedup == "drop" else rows
        raise ValueError(
            f"the split wants {total} rows (members {sizes.members}, reference {sizes.reference}, "
            f"nonmembers {sizes.nonmembers}, untrained 2 x {sizes.untrained}) but the dataset has "
            f"{has}; take {total - available} off the sizes"
        )
    wanted = [
        role_parts(role, getattr(sizes, role), known)
        for role in ("members", "nonmembers", "reference")
    ]
    return [*wanted, {"untrained_a": sizes.untrained}, {"untrained_b": sizes.untrained}]


def role_parts(role: str, num: int, known: float) -> dict[str, int]:
    """Rows of each part of members, nonmembers or reference.

    Returns:
        Parts by name; the part that takes what the others leave comes last.

    Raises:
        ValueError: if a part is left without a record.
    """
    if role == "reference":
        num_val = _fifth(num)
        if num and not num_val:
            raise ValueError(f"sizes.reference is {num}; use 0, or 3 and more")
        return {"reference_val": num_val, "reference_fit": num - num_val}
    parts = _known_sizes(num, known)
    if min(parts) < 1:
        raise ValueError(
            f"sizes.{role} is {num}: known={known} divides it into fit, cal, eval = {parts}, each "
            "of which needs a record; enlarge it"
        )
    return {f"{role}_{part}": n for part, n in zip(("fit", "cal", "eval"), parts, strict=True)}


def _known_sizes(num: int, known: float) -> list[int]:
    """Sizes of fit, cal and eval."""
    num_known = math.floor(known * num + 0.5)
    return [num_known - _fifth(num_known), _fifth(num_known), num - num_known]


def _fifth(num: int) -> int:
    """20 %, rounded half up, in integers."""
    return (2 * num + 5) // 10
