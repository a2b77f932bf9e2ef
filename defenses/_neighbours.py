"""Nearest stored confidence vectors, right also where vectors are saturated."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["NeighbourIndex"]

# Powers of two lose nothing. Squares of differences down to 1e-35 stay above the smallest float32,
# and a sum of C squares of 1 stays below the largest.
_SCALE = 2.0**56
_CHUNK = 8192


class NeighbourIndex:
    """The nearest stored vectors that have a query's label (its largest entry; first wins ties).

    Vectors of a memorising model differ far below the rounding of 1.0 in float32, and the usual
    expansion |a|² - 2ab + |b|² rounds worse still: for one query in five it finds a wrong
    neighbour, often with the right one not among eight candidates. Three things repair it.

    * Vectors of one label are compared with one another only. A swap needs the same label anyway.
    * Within a label the top entry p is stored as 1 - p, which float64 subtracts exactly, so the
      differences do not change while float32 keeps seven digits of what is left over.
    * FAISS's inverted lists (one a label) take differences directly, and what they find is
      measured and ordered again in float64.

    Source: PURIFIER section 4.3, algorithm 2 (the paper names a kNN index, not its arithmetic).
    """

    def __init__(self, vectors: NDArray[Any]) -> None:
        """Store vectors [M, C], entries in [0, 1]; M may be 0.

        Raises:
            ValueError: if they are not two-dimensional or an entry is outside [0, 1].
        """
        self._vectors_MC = np.ascontiguousarray(vectors, dtype=np.float64)
        if self._vectors_MC.ndim != 2:
            raise ValueError(
                f"stored vectors have shape {list(self._vectors_MC.shape)}, not [M, C]"
            )
        # Written so that NaN is refused too.
        if not ((self._vectors_MC >= 0) & (self._vectors_MC <= 1)).all():
            raise ValueError("stored vectors have entries outside [0, 1]; store confidences")
        num_stored, num_classes = self._vectors_MC.shape
        self._quantizer = faiss.IndexFlatL2(num_classes)  # FAISS keeps no reference of its own
        self._index: Any = faiss.IndexIVFFlat(self._quantizer, num_classes, num_classes)
        self._index.is_trained = True  # the lists are the labels: there is nothing to cluster
        if num_stored:
            label_M = self._vectors_MC.argmax(axis=1).astype(np.int64)
            code_MC = _encode(self._vectors_MC, label_M)
            id_M = np.arange(num_stored, dtype=np.int64)
            self._index.add_core(
                num_stored, faiss.swig_ptr(code_MC), faiss.swig_ptr(id_M), faiss.swig_ptr(label_M)
            )

    def search(
        self, queries: NDArray[Any], k: int = 1, *, candidates: int = 8
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The k nearest stored vectors of each query's label.

        Args:
            queries: [N, C], entries in [0, 1]. Not modified.
            k: how many to return.
            candidates: how many FAISS proposes to the float64 measurement (at least k).

        Returns:
            L2 distances [N, k], ascending, and positions [N, k] in the stored array; the lower
            position first where distances tie. Where fewer than k are stored: inf and -1.

        Raises:
            ValueError: if the queries are not [N, C] or k is less than 1.
        """
        q_NC = np.ascontiguousarray(queries, dtype=np.float64)
        num_stored, num_classes = self._vectors_MC.shape
        if q_NC.ndim != 2 or q_NC.shape[1] != num_classes:
            raise ValueError(
                f"queries have shape {list(q_NC.shape)}, the index holds [M, {num_classes}]"
            )
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least 1 neighbour")
        distance_Nk = np.full((len(q_NC), k), np.inf)
        id_Nk = np.full((len(q_NC), k), -1, dtype=np.int64)
        if num_stored:
            for start in range(0, len(q_NC), _CHUNK):
                rows = slice(start, start + _CHUNK)
                distance_Nk[rows], id_Nk[rows] = self._search(q_NC[rows], k, max(k, candidates))
        return distance_Nk, id_Nk

    def _search(
        self, q_NC: NDArray[np.float64], k: int, candidates: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        label_N = q_NC.argmax(axis=1).astype(np.int64)
        _, id_NK = self._index.search_preassigned(
            _encode(q_NC, label_N),
            candidates,
            label_N[:, None],
            np.zeros((len(q_NC), 1), dtype=np.float32),
        )
        distance_NK = np.empty(id_NK.shape)
        for j in range(candidates):  # one candidate at a time bounds the memory
            difference_NC = self._vectors_MC[id_NK[:, j]] - q_NC
            distance_NK[:, j] = np.sqrt(np.einsum("nc,nc->n", difference_NC, difference_NC))
        distance_NK[id_NK < 0] = np.inf
        order_Nk = np.lexsort((id_NK, distance_NK), axis=1)[:, :k]
        return (
            np.take_along_axis(distance_NK, order_Nk, axis=1),
            np.take_along_axis(id_NK, order_Nk, axis=1),
        )


def _encode(vectors_NC: NDArray[np.float64], label_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Float32 [N, C] with the top entry p as 1 - p, scaled."""
    code_NC = vectors_NC.copy()
    row_N = np.arange(len(code_NC))
    code_NC[row_N, label_N] = 1 - code_NC[row_N, label_N]
    return (code_NC * _SCALE).astype(np.float32)
