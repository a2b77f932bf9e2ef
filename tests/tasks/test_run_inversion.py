"""The attacker gets answers and its own records; the errors are those of what it returns."""

import io
import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from attacks.base import Attack
from attacks.inversion import Inversion
from defenses.onehot import OneHot
from storage import datasets
from storage.tables import SCHEMAS
from tasks import architectures, images
from tasks.answers import Answers
from tasks.base import Data, Rows
from tasks.image_grid import image_grid
from tasks.run_inversion import EXAMPLES, RunInversion
from tasks.split import Split
from tasks.train_target import TrainTarget
from tasks.worker import Bench, Site

SOURCE = datasets.Source("digits")
FAST = Inversion(width=8, epochs=6, learning_rates=(5e-3,))


class Spy(Attack):
    """Keeps what it was given, and answers what a test wants."""

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-pop"

    returns: str = "mean"
    seen: ClassVar[dict[str, Any]] = {}

    def reconstruct(self, answers: Any, known: Any, *, seed: int) -> Any:
        own = known.population
        Spy.seen = {"answers": answers, "known": known, "own": own, "seed": seed}
        Spy.seen["told"] = known.query(own.x[:25])
        mean = np.broadcast_to(own.x.mean(axis=0), (len(answers), *own.x.shape[1:]))
        match self.returns:
            case "nan":
                return mean * np.nan
            case "flat":
                return mean.reshape(len(mean), -1)
            case "fit":
                return known.fit
            case "foreign":
                return known.x_of(np.setdiff1d(np.arange(400), known.held.population_rows)[:200])
            case "shadows":
                return known.shadows
        return mean


@dataclass(frozen=True)
class Photos:
    """A store with a service that answers about digits of 8x8 pixels."""

    site: Site
    split: Split
    plain: Answers
    identity: TrainTarget

    @property
    def bench(self) -> Bench:
        return Bench(self.site)

    @property
    def dataset(self) -> datasets.Dataset:
        return datasets.load(SOURCE)

    def attack(self, plugin: Attack, answers: Answers | None = None, **fields: Any) -> RunInversion:
        given = {"judge": "members", "identity": self.identity, **fields}
        return RunInversion(self.plain.seed, answers or self.plain, plugin, **given)


class Poisoned(Bench):
    """A bench on which some records are other ones."""

    def __init__(self, site: Site, rows: NDArray[np.int64]) -> None:
        super().__init__(site)
        self.rows = rows

    def dataset(self, data: Any) -> Any:
        dataset = super().dataset(data)
        values = np.array(dataset._values)
        values[self.rows] = 16 - values[self.rows]
        return replace(dataset, _values=values)


@pytest.fixture(scope="module")
def photos(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """1,797 digits; the attacker holds 40 of the nonmembers and the 1,197 of no role."""
    folder = tmp_path_factory.mktemp("photos")
    data = Data(SOURCE, datasets.load(SOURCE).content_hash)
    split = Split(4, data, 200, 200, 200, 0, 0.25, "group")
    recipe = architectures.make("mlp_s", hidden=(64,), epochs=40, learning_rate=3e-3)
    plain = Answers(4, TrainTarget(4, split, recipe))
    rows = Rows(split.divide(datasets.load(SOURCE)).reference)
    small = architectures.make("cnn_s", channels=(8, 8), hidden=(16,), epochs=15)
    made = Photos(Site(folder), split, plain, TrainTarget(5, split, small, rows=rows))
    given = replace(lab, site=made.site)
    for task in (plain, made.identity):
        given.run(task)
    return made


def ran(bench: Bench, task: RunInversion) -> Any:
    """The artifact of a task on a bench, made anew."""
    if task.key in bench.artifacts:
        bench.artifacts.set_aside(task.key, "made anew")
    bench.artifacts.put(task.key, task.description, lambda draft: task.run(bench, draft))
    return bench.open(task)


def test_it_sees_the_answers_and_records_nobody_is_judged_by(photos: Photos) -> None:
    bench = photos.bench
    artifact = ran(bench, photos.attack(Spy()))
    table, facts = artifact.table("records"), artifact.facts("metrics")
    split = bench.split(photos.split)
    judged, is_member = split.judged()
    assert sorted(table["record"]) == sorted(judged)
    assert not np.array_equal(table["record"], judged)
    assert sorted(table["record"][table["is_member"]]) == sorted(judged[is_member])
    np.testing.assert_array_equal(Spy.seen["answers"], photos.plain.of(table["record"], bench))
    held = np.concatenate([split.nonmembers_fit, split.population])
    assert len(Spy.seen["own"]) == facts["num_known"] == len(held)
    groups = photos.dataset.groups
    assert not set(groups[held]) & set(groups[judged])
    own = {row.tobytes() for row in Spy.seen["own"].x}
    assert not own & {row.tobytes() for row in photos.dataset.x(judged)}
    # Queries about the attacker's records are counted, the answers it is handed are not its own.
    assert facts["num_queries"] == 25
    np.testing.assert_allclose(Spy.seen["told"].sum(axis=1), 1)


@pytest.mark.parametrize(
    ("returns", "error", "message"),
    [
        ("fit", PermissionError, "is told nobody's membership"),
        ("foreign", PermissionError, "does not hold rows"),
        ("shadows", TypeError, "has no shadow models"),
        ("nan", ValueError, "with 19200 values not finite"),
        ("flat", ValueError, r"must return finite records \[300, 1, 8, 8\]"),
    ],
)
def test_what_it_is_not_granted_or_must_not_return_is_refused(
    photos: Photos, returns: str, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        ran(photos.bench, photos.attack(Spy(returns=returns)))


def test_judged_records_could_be_anything(photos: Photos) -> None:
    """Once the service has answered, an attack reads nothing of the records it answered about."""
    judged = photos.bench.split(photos.split).judged()[0]
    honest = ran(photos.bench, photos.attack(FAST)).arrays("examples")
    poisoned = ran(Poisoned(photos.site, judged), photos.attack(FAST)).arrays("examples")
    np.testing.assert_array_equal(honest["rebuilt"], poisoned["rebuilt"])
    assert (honest["original"] != poisoned["original"]).mean() > 0.5


def test_errors_are_of_what_it_returned(photos: Photos) -> None:
    bench, task = photos.bench, photos.attack(Spy())
    artifact = ran(bench, task)
    table, facts = artifact.table("records"), artifact.facts("metrics")
    data, own = photos.dataset, Spy.seen["own"]
    x = data.x(table["record"]).astype(np.float64)
    mean = own.x.mean(axis=0)
    slow = [float(np.mean((record - mean) ** 2)) for record in x]
    np.testing.assert_allclose(table["inversion_error"], slow, rtol=1e-6)
    assert facts["inversion_error"] == pytest.approx(np.mean(slow))
    assert facts["inversion_error"] == pytest.approx(facts["mean_error"], rel=1e-6)
    no_better = facts["inversion_error"] >= facts["mean_error"]
    assert ("no_better_than_mean" in facts["flags"]) == no_better
    by_class = np.mean(
        [
            np.mean((record - own.x[own.y == label].mean(axis=0)) ** 2)
            for record, label in zip(x, data.y[table["record"]], strict=True)
        ]
    )
    assert facts["class_mean_error"] == pytest.approx(by_class, rel=1e-5)
    scale = data.x(bench.split(photos.split).members).std()
    assert facts["normalised_error"] == pytest.approx(np.mean(slow) / scale**2, rel=1e-5)
    assert facts["normalised_mean_error"] == pytest.approx(facts["mean_error"] / scale**2, rel=1e-5)
    constant = np.broadcast_to(mean, x.shape)
    np.testing.assert_allclose(table["ssim"], images.ssim(x, constant), rtol=1e-6)
    # One picture for all is one class for all: a tenth of them, or about that.
    rates = np.bincount(data.y[table["record"]], minlength=10) / len(x)
    assert np.isclose(rates, facts["reidentified"]).any()
    assert facts["reidentified_originals"] > 0.8
    assert facts["cosine"] < 1


def test_an_honest_attack_beats_the_mean(photos: Photos) -> None:
    longer = FAST.model_copy(update={"epochs": 25})
    plain = ran(photos.bench, photos.attack(longer)).facts("metrics")
    assert plain["inversion_error_high"] < plain["mean_error"]
    assert plain["reidentified_low"] > 0.5
    assert "no_better_than_mean" not in plain["flags"]


def test_examples_are_the_same_for_every_defense(photos: Photos, lab: Any) -> None:
    defended = replace(lab, site=photos.site, plain=photos.plain).defended(OneHot())
    replace(lab, site=photos.site).run(defended)
    one = ran(photos.bench, photos.attack(Spy()))
    other = ran(photos.bench, photos.attack(Spy(), defended))
    mine, theirs = one.arrays("examples"), other.arrays("examples")
    np.testing.assert_array_equal(mine["record"], theirs["record"])
    assert mine["is_member"].tolist() == [True] * EXAMPLES + [False] * EXAMPLES
    pixels = np.rint(255 * photos.dataset.x(mine["record"])).astype(np.uint8)
    np.testing.assert_array_equal(mine["original"], pixels)
    with Image.open(io.BytesIO(one.image("examples"))) as image:
        drawn = np.asarray(image)
    grid = image_grid([mine["original"], mine["rebuilt"]], mine["is_member"])
    np.testing.assert_array_equal(drawn, grid)


def test_records_that_are_no_images_have_no_figures_of_sight(photos: Photos) -> None:
    artifact = ran(photos.bench, photos.attack(Spy(), identity=None))
    assert "ssim" not in artifact.facts("metrics")
    assert "examples.png" not in artifact.files
    assert set(artifact.table("records")) == {
        *("record", "is_member", "inversion_error", "normalised_error"),
    }


def test_all_figures_have_a_column(photos: Photos) -> None:
    task = photos.attack(Spy())
    facts = ran(photos.bench, task).facts("metrics")
    assert set(facts) <= set(SCHEMAS["inversion"].names)
    assert [needed.kind for needed in task.inputs] == ["Answers", "TrainTarget"]
    assert json.loads(task.description)["fields"]["judge"] == "members"
