"""Reference records from elsewhere: which rows, how divided, how labelled, what is never seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from defenses.base import Defense, Setting
from storage import datasets
from storage.datasets import Source
from tasks.answers import Answers
from tasks.base import Data
from tasks.fit_defense import FitDefense
from tasks.reference import ReferenceFrom, _noise, brought, check_input, reference_rows
from tasks.split import rows_seen
from tasks.train_target import TrainTarget


class Spy(Defense):
    """Changes nothing, and keeps what it was given."""

    VERSION: ClassVar[int] = 1
    given: ClassVar[list[Setting]] = []

    def fit(self, setting: Setting, *, seed: int) -> dict[str, Any]:
        Spy.given.append(setting)
        return {"nothing": np.zeros(1)}

    def apply(self, confidence: Any, state: Mapping[str, Any], noise: Any) -> Any:
        return confidence.copy()


def fitted(lab: Any, folder: Path, choice: ReferenceFrom | None) -> tuple[Setting, Any]:
    """What a defense around the lab's target is given, and the rows the stage says it saw."""
    place = lab.elsewhere(folder, keep=(lab.split, lab.target, lab.plain))
    task = FitDefense(seed=lab.plain.seed, answers=lab.plain, defense=Spy(), reference_from=choice)
    seen = rows_seen(place.run(task))
    return Spy.given[-1], seen


def records(x: Any) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(x, dtype=np.float32)}


# --- rows of the target's own data set ---


@given(
    st.sampled_from(["reference", "members", "nonmembers"]),
    st.lists(st.integers(0, 12), min_size=60, max_size=60),
    st.integers(10, 20),
    st.integers(0, 2**31),
)
def test_rows_are_of_their_role_and_divided_without_parting_duplicates(role, group, size, seed):
    groups = np.array(group)
    rows = np.random.default_rng(seed).permutation(60)
    members, nonmembers, fit, val = rows[:20], rows[20:40], rows[40:56], rows[56:]
    roles = {"members": members, "nonmembers": nonmembers, "reference": rows[40:]}

    def of(size):
        return reference_rows(
            ReferenceFrom(role=role, size=size),
            members=members,
            reference=(fit, val),
            nonmembers=nonmembers,
            groups=groups,
            seed=seed,
        )

    chosen = of(size)
    both = np.concatenate(chosen)
    assert len(both) == len(set(both.tolist())) == size
    assert np.isin(both, roles[role]).all()
    assert len(np.concatenate(of(None))) == 20
    if role == "reference":
        # D2's own division stands, and more data is more of the same.
        assert np.isin(chosen[0], fit).all()
        assert np.isin(chosen[1], val).all()
        for part, larger in zip(of(10), chosen, strict=True):
            assert set(part.tolist()) <= set(larger.tolist())
    else:
        assert not set(groups[chosen[0]]) & set(groups[chosen[1]])
        assert len(chosen[1]) <= (2 * size + 5) // 10


def test_without_duplicates_a_fifth_is_kept_to_select_on():
    rows = np.arange(300)
    for role in ("reference", "members", "nonmembers"):
        fit, val = reference_rows(
            ReferenceFrom(role=role, size=50),
            members=rows[:100],
            reference=(rows[100:180], rows[180:200]),
            nonmembers=rows[200:],
            groups=rows,
            seed=0,
        )
        assert (len(fit), len(val)) == (40, 10)


def test_members_in_place_of_the_reference(lab, tmp_path):
    setting, seen = fitted(lab, tmp_path, ReferenceFrom(role="members"))
    plain, usual = fitted(lab, tmp_path / "plain", None)
    assert records(setting.reference.x) == records(setting.members.x)
    assert not records(setting.reference.fit.x) & records(setting.reference.val.x)
    assert set(seen["reference"].tolist()) == set(seen["members"].tolist())
    # How the model does on records it never saw is still to be told.
    np.testing.assert_array_equal(setting.reference.of_unseen.x, plain.reference.x)
    np.testing.assert_array_equal(setting.reference.of_unseen.y, plain.reference.y)
    assert set(seen["unseen"].tolist()) == set(usual["reference"].tolist())
    assert plain.reference.of_unseen is plain.reference
    assert "unseen" not in usual


def test_nonmembers_are_seen_and_said_to_be(lab, tmp_path):
    setting, seen = fitted(lab, tmp_path, ReferenceFrom(role="nonmembers"))
    split = lab.bench.split(lab.split)
    assert set(seen["reference"].tolist()) == set(split.nonmembers.tolist())
    assert len(setting.reference) == 60


def test_a_part_of_the_reference_is_all_the_defender_has(lab, tmp_path):
    setting, seen = fitted(lab, tmp_path, ReferenceFrom(role="reference", size=20))
    assert len(setting.reference) == len(seen["reference"]) == 20
    assert (len(setting.reference.fit), len(setting.reference.val)) == (16, 4)
    assert setting.reference.of_unseen is setting.reference


# --- records from elsewhere ---


def test_random_bits_are_labelled_by_the_target(lab, tmp_path):
    setting, seen = fitted(lab, tmp_path, ReferenceFrom(role="random", size=1000))
    reference = setting.reference
    assert reference.x.shape == (1000, 64)
    assert set(np.unique(reference.x).tolist()) == {0.0, 1.0}
    assert abs(reference.x.mean() - 0.5) < 0.01
    assert len(reference.fit) == 800
    np.testing.assert_array_equal(reference.x, np.concatenate([reference.fit.x, reference.val.x]))
    for part in (reference, reference.fit, reference.val):
        np.testing.assert_array_equal(part.y, setting.answer(part.x).argmax(axis=1))
    assert "reference" not in seen
    assert len(reference.of_unseen) == 60
    again, _ = fitted(lab, tmp_path / "again", ReferenceFrom(role="random", size=1000))
    np.testing.assert_array_equal(again.reference.x, reference.x)
    default, _ = fitted(lab, tmp_path / "default", ReferenceFrom(role="random"))
    assert len(default.reference) == 60


@pytest.mark.parametrize("x", [np.zeros((30, 8, 8), np.uint8), np.linspace(-5, 3, 120)])
def test_noise_fills_the_range_of_the_input(x, tmp_path):
    x = x.reshape(30, *(x.shape[1:] or (4,)))
    x.reshape(30, -1)[:, 0] = np.arange(30)
    target = datasets.load(own_set(tmp_path, x).source)
    made = _noise(4000, target, np.arange(30), np.random.default_rng(0))
    assert made.shape == (4000, *target.shape)
    assert made.dtype == np.float32
    held = target.x(np.arange(30))
    low, high = (0, 1) if target.kind == "image" else (held.min(axis=0), held.max(axis=0))
    spread = np.broadcast_to(high - low, made.shape[1:])
    assert (made.min(axis=0) >= low).all()
    assert (made.max(axis=0) <= high).all()
    assert (np.ptp(made, axis=0) > 0.95 * spread).all()


def own_set(folder: Path, x: Any, name: str = "other") -> Data:
    path = folder / f"{name}.npz"
    np.savez(path, x=x, y=np.arange(len(x)) % 3)
    source = Source(name, str(path))
    return Data(source, datasets.load(source).content_hash)


def test_of_another_set_no_nonmember_is_taken(lab, tmp_path):
    split, dataset = lab.bench.split(lab.split), lab.dataset
    judged = dataset.x(split.nonmembers).astype(np.uint8)
    fresh = np.random.default_rng(0).integers(0, 2, (50, 64)).astype(np.uint8)
    fresh = np.concatenate([fresh, fresh[:10]])  # duplicates, to be kept together
    data = own_set(tmp_path, np.concatenate([judged, fresh]))
    choice = ReferenceFrom(role="dataset", size=60, data=data)
    setting, seen = fitted(lab, tmp_path, choice)
    assert records(setting.reference.x) == records(fresh)
    assert not records(setting.reference.fit.x) & records(setting.reference.val.x)
    expected = setting.answer(setting.reference.x).argmax(axis=1)
    np.testing.assert_array_equal(setting.reference.y, expected)
    assert "reference" not in seen
    more = ReferenceFrom(role="dataset", size=61, data=data)
    with pytest.raises(ValueError, match=r"only 60 are not among the nonmembers.*size to 60"):
        fitted(lab, tmp_path / "more", more)
    few = own_set(tmp_path, fresh[:30], "few")
    all_there_is, _ = fitted(lab, tmp_path / "few", ReferenceFrom(role="dataset", data=few))
    assert len(all_there_is.reference) == 30


def test_grey_and_resized_as_pillow_does_it():
    rng = np.random.default_rng(0)
    x = rng.random((3, 3, 32, 20), dtype=np.float32)
    for shape in ((1, 64, 64), (1, 8, 8), (3, 17, 40)):
        got = brought(x, shape)
        assert got.shape == (3, *shape)
        assert got.dtype == np.float32
        for record, made in zip(x, got, strict=True):
            channels = record
            if shape[0] == 1:
                channels = [0.299 * record[0] + 0.587 * record[1] + 0.114 * record[2]]
            for channel, expected in zip(made, channels, strict=True):
                image = Image.fromarray(np.asarray(expected, dtype=np.float32))
                by_pillow = image.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
                np.testing.assert_allclose(channel, np.asarray(by_pillow), atol=1e-5)
    grey = brought(x[:, :1], (3, 32, 20))
    np.testing.assert_array_equal(grey, np.repeat(x[:, :1], 3, axis=1))
    assert brought(x, (3, 32, 20)) is x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((40, 63), np.uint8), r"records of 63 \(binary\), the target takes 64 \(binary\)"),
        (np.zeros((40, 8, 8), np.uint8), "but not to features nor features to images"),
        (np.full((40, 64), 0.5), "give a data set of bits"),
    ],
)
def test_records_that_cannot_be_brought_are_refused(lab, tmp_path, x, message):
    x = x + np.zeros_like(x)
    x.reshape(40, -1)[:, 0] = np.arange(40) % 2
    other = datasets.load(own_set(tmp_path, x).source)
    with pytest.raises(ValueError, match=message):
        check_input(other, lab.dataset)


def test_the_targets_own_set_is_refused(lab):
    with pytest.raises(ValueError, match="the target's own data set; use reference"):
        check_input(lab.dataset, lab.dataset)


# --- tasks ---


def test_keys_tell_references_apart_and_none_is_as_ever(lab, tmp_path):
    def key(choice):
        fit = FitDefense(seed=0, answers=lab.plain, defense=Spy(), reference_from=choice)
        return fit.key

    random = {size: ReferenceFrom(role="random", size=size) for size in (20, 30)}
    data = own_set(tmp_path, np.eye(64, dtype=np.uint8))
    others = [
        None,
        ReferenceFrom(role="members"),
        ReferenceFrom(role="nonmembers"),
        *random.values(),
        ReferenceFrom(role="dataset", data=data),
    ]
    assert len({key(choice) for choice in others}) == len(others)
    plain = FitDefense(seed=0, answers=lab.plain, defense=Spy())
    assert key(None) == plain.key
    assert "reference_from" not in plain.description
    elsewhere = Data(Source("other", "/other/path.npz"), data.content_hash)
    assert key(ReferenceFrom(role="dataset", data=elsewhere)) == key(others[-1])


def test_answers_say_what_the_defense_saw(lab):
    def deployed(*roles):
        answers = lab.plain
        for role in roles:
            choice = None if role is None else ReferenceFrom(role=role)
            fit = FitDefense(seed=0, answers=answers, defense=Spy(), reference_from=choice)
            answers = Answers(seed=0, source=fit)
        return answers

    assert deployed(None).flags == []
    assert deployed("members", None).flags == []
    assert deployed("nonmembers", None).flags == ["leaky"]
    assert (
        '"reference": {"from": "members", "size": null}'
        in (deployed("members").columns()["defense_params"])
    )
    assert '"reference"' not in deployed(None).columns()["defense_params"]


def test_a_training_defense_leaves_the_reference_of_those_around_it_alone(lab):
    changed = TrainTarget(
        seed=lab.target.seed,
        split=lab.split,
        architecture=lab.target.architecture,
        reference_from=ReferenceFrom(role="members"),
    )
    assert changed.key != lab.target.key
    for part, usual in zip(
        changed.reference_rows(lab.bench), lab.target.reference_rows(lab.bench), strict=True
    ):
        np.testing.assert_array_equal(part, usual)


@pytest.mark.parametrize(
    ("role", "copied"),
    [("reference", None), ("nonmembers", None), ("members", "members"), ("random", "random")],
)
def test_an_attacker_follows_the_procedure_with_records_of_its_own(role, copied):
    own = ReferenceFrom(role=role, size=20).of_attacker
    assert (own.role if own else None) == copied
    if own and own.role == "members":
        assert own.size is None  # it may hold fewer than the defender
