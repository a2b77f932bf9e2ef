"""A random forest as arrays."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.ensemble import RandomForestClassifier

__all__ = ["forest_answers", "grown"]

_CHUNK = 1024


def grown(
    x: NDArray[Any], y: NDArray[np.int64], *, num_trees: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Grow scikit-learn's random forest (default depth: until leaves are pure).

    Args:
        x: [N, D] float32.
        y: [N] classes.
        num_trees: how many.
        rng: decides the bootstrap samples and the features tried.

    Returns:
        `root` [T]; for each node `left`, `right` (a leaf's own number), `feature`, `threshold`;
        and the class shares of node i at `start`[i] to `start`[i + 1] of `class` and `share`,
        none for what is no leaf.
    """
    trees: dict[str, list[NDArray[Any]]] = {}
    num_nodes = 0
    for _ in range(num_trees):
        # One tree at a time: all share nothing but the records, and scikit-learn keeps C numbers
        # for every node, which for a forest of many classes is gigabytes.
        forest = RandomForestClassifier(n_estimators=1, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            tree = forest.fit(x, y).estimators_[0].tree_
        own = np.arange(tree.node_count, dtype=np.int32)
        leaf = tree.children_left < 0
        value = tree.value[:, 0, :] * leaf[:, None]
        node, position = np.nonzero(value)
        share = value[node, position]
        share /= np.bincount(node, share, minlength=len(own))[node]
        part = {
            "root": np.array([num_nodes]),
            "left": num_nodes + np.where(leaf, own, tree.children_left),
            "right": num_nodes + np.where(leaf, own, tree.children_right),
            "feature": np.where(leaf, 0, tree.feature),
            "threshold": np.where(leaf, 0.0, tree.threshold),
            "count": np.bincount(node, minlength=len(own)),
            "class": forest.classes_[position],
            "share": share,
        }
        for name, array in part.items():
            trees.setdefault(name, []).append(array)
        num_nodes += len(own)
    arrays = {name: np.concatenate(parts) for name, parts in trees.items()}
    arrays["start"] = np.concatenate([[0], np.cumsum(arrays.pop("count"))])
    whole = ("root", "left", "right", "feature", "class", "start")
    return {name: a.astype(np.int32) if name in whole else a for name, a in arrays.items()}


def forest_answers(
    arrays: Mapping[str, NDArray[Any]], x: NDArray[Any], num_classes: int
) -> NDArray[np.float64]:
    """The mean over the trees of the class shares in the leaf of each of x [N, D]: [N, C]."""
    shape = (len(arrays["left"]), num_classes)
    leaves = csr_matrix((arrays["share"], arrays["class"], arrays["start"]), shape=shape)
    answers_NC = np.empty((len(x), num_classes))
    for first in range(0, len(x), _CHUNK):
        node_BT = _leaf(arrays, x[first : first + _CHUNK])
        num_rows, num_trees = node_BT.shape
        start = np.arange(0, node_BT.size + 1, num_trees)
        votes = np.full(node_BT.size, 1 / num_trees)
        chosen = csr_matrix((votes, node_BT.ravel(), start), shape=(num_rows, shape[0]))
        answers_NC[first : first + _CHUNK] = (chosen @ leaves).toarray()
    return answers_NC


def _leaf(arrays: Mapping[str, NDArray[Any]], x_BD: NDArray[Any]) -> NDArray[np.int32]:
    """The leaf [B, T] of every tree that each row ends in."""
    left, right = arrays["left"], arrays["right"]
    row_B1 = np.arange(len(x_BD))[:, None]
    node_BT: NDArray[np.int32] = np.tile(arrays["root"], (len(x_BD), 1))
    while True:
        below_BT = x_BD[row_B1, arrays["feature"][node_BT]] <= arrays["threshold"][node_BT]
        next_BT = np.where(below_BT, left[node_BT], right[node_BT])
        if np.array_equal(next_BT, node_BT):
            return node_BT
        node_BT = next_BT
