"""Roles given by a column: kept as given, divided fairly, duplicates refused or reduced to one."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.given import GIVEN_ROLES, given_split, straddling
from storage.splits import ROLES, Split

WORDS = {"members": ("train",), "reference": ("calib",), "nonmembers": ("test", "7")}
ROLE = {value: role for role, values in WORDS.items() for value in values}


@dataclass
class Table:
    """A column and the duplicate groups of its rows."""

    groups: NDArray[np.int64]
    values: NDArray[np.str_]

    def split(self, seed: int = 0, dedup: str = "group", known: float = 0.5) -> Split:
        return given_split(
            self.groups,
            self.values,
            WORDS,
            column="fold",
            known=known,
            seed=seed,
            dedup=dedup,
        )

    def role(self, row: int) -> str:
        return ROLE.get(str(self.values[row]), "")


@st.composite
def tables(draw: st.DrawFn, *, mixed: bool) -> Table:
    """Rows in groups of up to three; `mixed` groups may hold rows of several roles."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = rng.choice([1, 2, 3], size=draw(st.integers(150, 220)), p=(0.6, 0.2, 0.2))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    words = np.array(["train", "calib", "test", "7", "spare", ""])
    values = np.repeat(rng.choice(words, size=len(sizes)), sizes)
    if mixed:
        some = rng.random(len(values)) < draw(st.sampled_from([0.05, 0.5]))
        values[some] = rng.choice(words, size=some.sum())
    else:
        # Rows without a role may equal others: they say nothing of the user's about who is what.
        values[rng.random(len(values)) < 0.05] = "spare"
    order = rng.permutation(len(groups))
    return Table(rng.permutation(1000)[groups[order]], values[order])


def test_more_values_stand_for_a_role_than_there_are_roles() -> None:
    assert set(WORDS) == set(GIVEN_ROLES)
    assert len(ROLE) > len(GIVEN_ROLES)


@given(tables(mixed=False), st.integers(0, 9), st.sampled_from([0.25, 0.5, 0.75]))
@settings(max_examples=40, deadline=None)
def test_parts_are_the_given_roles_divided(table: Table, seed: int, known: float) -> None:
    split = table.split(seed, known=known)
    rows = np.arange(len(table.groups))
    parts = {name: set(of_part.tolist()) for name, of_part in split.roles().items()}
    assert list(parts) == list(ROLES)
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    for role in GIVEN_ROLES:
        wanted = {row for row in rows.tolist() if table.role(row) == role}
        assert set(getattr(split, role).tolist()) == wanted
        assert set().union(*(p for n, p in parts.items() if n.startswith(role))) == wanted
    for role in ("members", "nonmembers"):
        num = len(getattr(split, role))
        attackers = len(parts[f"{role}_fit"]) + len(parts[f"{role}_cal"])
        assert abs(attackers - known * num) <= 3  # groups of up to three rows stay together
    part_of_group: dict[int, str] = {}
    for name, of_part in parts.items():
        for row in of_part:
            assert part_of_group.setdefault(int(table.groups[row]), name) == name
    taken = {group for group, name in part_of_group.items() if name != "population"}
    alone = {row for row in rows.tolist() if table.groups[row] not in taken}
    assert parts["population"] == alone
    assert {table.role(row) for row in alone} <= {""}


@given(tables(mixed=True), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_drop_keeps_one_row_of_each_record_the_member_first(table: Table, seed: int) -> None:
    kept: dict[str, list[int]] = {role: [] for role in (*GIVEN_ROLES, "")}
    for group in np.unique(table.groups):
        rows = np.flatnonzero(table.groups == group).tolist()
        ranked = sorted(rows, key=lambda row: ((*GIVEN_ROLES, "").index(table.role(row)), row))
        kept[table.role(ranked[0])].append(ranked[0])
    assume(all(len(kept[role]) >= 10 for role in GIVEN_ROLES))
    split = table.split(seed, "drop")
    for role in GIVEN_ROLES:
        assert sorted(getattr(split, role).tolist()) == sorted(kept[role])
    assert sorted(split.population.tolist()) == sorted(kept[""])


@given(tables(mixed=True))
@settings(max_examples=40, deadline=None)
def test_equal_records_in_different_roles_are_refused(table: Table) -> None:
    roles: dict[int, set[str]] = {}
    for row, group in enumerate(table.groups.tolist()):
        roles.setdefault(group, set()).add(table.role(row))
    divided = {group for group, names in roles.items() if len(names - {""}) > 1}
    given_names = np.array([table.role(row) for row in range(len(table.groups))])
    found = straddling(table.groups, given_names)
    wanted = [g in divided and n != "" for g, n in zip(table.groups, given_names, strict=True)]
    assert found.tolist() == wanted
    if not divided:
        return
    with pytest.raises(ValueError, match=r"but fold makes .*dedup: drop") as said:
        table.split()
    words = str(said.value).split()
    one, other = int(words[1]), int(words[3])
    assert table.groups[one] == table.groups[other]
    assert table.role(one) != table.role(other)
    for row in (one, other):
        assert f"row {row} one of the {table.role(row)} ('{table.values[row]}')" in str(said.value)
    assert f"; {len(divided)} records ({sum(wanted)} rows)" in str(said.value)


def plain(**rows: int) -> Table:
    values = np.repeat(list(rows), list(rows.values()))
    return Table(np.arange(len(values)), values)


def test_members_are_the_same_under_every_seed_and_what_is_known_of_them_is_not() -> None:
    table = plain(train=40, calib=20, test=30, **{"7": 10})
    one, other = table.split(0), table.split(1)
    for role in GIVEN_ROLES:
        mine, others = getattr(one, role), getattr(other, role)
        assert sorted(mine.tolist()) == sorted(others.tolist())
        assert mine.tolist() != others.tolist()
    assert set(one.members_fit.tolist()) != set(other.members_fit.tolist())
    known = [np.isin(np.arange(40), table.split(seed).members_eval) for seed in range(400)]
    z = (np.sum(known, axis=0) - 200) / np.sqrt(100)
    assert abs(z).max() < 4.5  # every member is as likely as any other to be known


def test_a_row_that_equals_a_member_is_no_population() -> None:
    table = plain(train=20, calib=20, test=20, **{"7": 10}, spare=5)
    table.groups[-1] = table.groups[0]
    split = table.split()
    assert split.population.tolist() != []
    assert 74 not in split.population
    assert split.role_of(np.array([74])).tolist() == [""]


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (plain(train=9, calib=20, test=20, **{"7": 1}), ("9 rows", "'train'", "members", "10")),
        (plain(train=20, calib=3, test=20, **{"7": 1}), ("3 rows", "'calib'", "'train' (20)")),
        (plain(train=20, calib=20, test=20), ("no row has fold = '7'", "'test' (20)")),
        (plain(Train=20, calib=20, test=20, **{"7": 1}), ("fold = 'train'", "'Train' (20)")),
    ],
)
def test_roles_that_cannot_be_filled_are_refused(table: Table, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="fold") as said:
        table.split()
    for part in parts:
        assert part in str(said.value)


def test_a_role_of_one_record_repeated_is_refused() -> None:
    table = plain(train=20, calib=20, test=20, **{"7": 1})
    table.groups[:20] = 0
    with pytest.raises(ValueError, match="no duplicate group fits into members_fit"):
        table.split()
    with pytest.raises(ValueError, match="1 distinct records have fold = 'train'"):
        table.split(dedup="drop")
