"""What defenses leave of images, under each other; what is not done is left out."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from orchestrator.check import load_experiment
from orchestrator.figures import inversion_figures, kept_images, labelled_grid
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from tasks.image_grid import image_grid

ATTACK = {"name": "inversion", "epochs": 1, "width": 2, "learning_rates": [1e-3], "num_records": 40}
KEYS = {
    "datasets": [
        {"name": "digits", "split": {"members": 40, "reference": 40, "nonmembers": 40}},
    ],
    "attacks": [ATTACK, {**ATTACK, "top_k": 1, "label": "top [1]"}],
    "defenses": ["none", "onehot"],
}


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def test_labels_stand_beside_their_rows():
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 255, (3, 1, 64, 64)).astype(np.uint8) for name in ("a", "é b")}
    is_member = np.array([True, False, False])
    drawn = pixels(labelled_grid(rows, is_member))
    grid = image_grid(list(rows.values()), is_member)
    np.testing.assert_array_equal(drawn[-len(grid) :, -grid.shape[1] :], grid)
    margin = drawn[-len(grid) :, : -grid.shape[1]]
    for half in (margin[:70], margin[70:]):
        assert (half < 128).any()  # a label
    wider = labelled_grid({"a much longer label": rows["a"]}, is_member)
    assert pixels(wider).shape[1] > drawn.shape[1]


def test_a_row_for_each_attack_on_each_defense_that_is_done(place):
    assert place.run(**KEYS).code == 0
    store = Store(place.store)
    plan = make_plan(load_experiment(place.file(**KEYS)), None)
    (path,) = inversion_figures(plan, store)
    whole = pixels(path.read_bytes())
    keys = [cell.task.key for cell in plan.cells if cell.kind == "inversion"]
    assert len(keys) == 4
    one = pixels(kept_images(store, keys[0]))
    assert whole.shape[0] > 2 * one.shape[0]
    for key in keys[1:]:
        shutil.rmtree(store.root / "artifacts" / key[:2] / key)
    (path,) = inversion_figures(plan, store)
    assert pixels(path.read_bytes()).shape[0] < whole.shape[0] - 2 * 64
    with pytest.raises(ValueError, match=f"task {keys[1][:12]} keeps no images"):
        kept_images(store, keys[1])
    shutil.rmtree(store.root / "artifacts" / keys[0][:2] / keys[0])
    assert inversion_figures(plan, store) == []
