"""BlindMI: records whose move to the non-members drives the two sets apart are non-members."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.svm import OneClassSVM

from attacks._generated import edges, gaussian_noise, random_inputs, salt_pepper, shuffled
from attacks._keyed import keyed_uniform
from attacks._mmd import FLOOR, SIGMAS, exchanged, survived
from attacks.base import Attack, Classifier, Kind, Knowledge

__all__ = ["Blindmi"]

Generator = Literal[
    "sobel", "scharr", "laplace", "gaussian", "salt_pepper", "random_bits", "column_shuffle"
]
_FOR_IMAGES = {"sobel", "scharr", "laplace", "gaussian", "salt_pepper"}
# Streams drawn from the attack's seed.
_BATCHES, _SOURCES, _GENERATE = 0, 1, 2
# Kernel values held at once: 32 MB.
_AT_ONCE = 2**22


class Blindmi(Attack):
    """Compare the records to be judged with one another, having nothing else.

    `diff_w` makes up non-members and asks the service about them; a record leaves the members of
    its batch if its move to them makes the distance (squared maximum mean discrepancy) larger.
    `diff_wo` makes up nothing: records above the median of the largest confidence are members
    at first, and records are moved either way as long as that drives the two sets apart.
    `one_class` fits a one-class support vector machine on made-up non-members.

    A score above 0 says "member". Of `diff_w` its integer part counts sweeps survived: at least 0
    for who survived all, else below; its fraction grows with the true label's confidence and only
    breaks ties. Of `diff_wo` the integer part is the decision. Of `one_class` it is the machine's
    decision function: its kernel grows with the confidence, so that, as in the public code, what
    the machine accepts is the members, though it was fitted on non-members.

    It is an attack on a batch: whom a record is judged with matters, their order does not. It
    works best where half of them are members, as in the published batches; where members are few,
    they leave with the rest.

    Source: Hui et al., "Practical Blind Membership Inference Attack via Differential Comparisons",
        NDSS 2021, BlindMI-Diff-w, BlindMI-Diff-w/o and BlindMI-1class; features, kernel, floor,
        batches and the machine are those of the public code. It keeps moves that change nothing,
        and does not end on equal answers; we end, and call one cluster members. We divide the
        records into batches of sizes as equal as can be, where the last of the code's is what
        remains. What is made of tables is ours, as the code has filters for images only.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-blind"
    THRESHOLD: ClassVar[float | None] = 0.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    variant: Literal["diff_w", "diff_wo", "one_class"] = Field(
        "diff_w", description="with made-up non-members, without any, or a one-class machine"
    )
    features: Literal["true_label", "top3"] | None = Field(
        None,
        description="true label's and two largest confidences, or three largest; by default the "
        "first for diff_w, the second for others",
    )
    generator: Generator | None = Field(
        None,
        description="how non-members are made: by default sobel for images, column_shuffle for "
        "tables; random_bits is for bits",
    )
    num_generated: int = Field(20, ge=2, description="non-members made up and asked about")
    batch_size: int | None = Field(
        None,
        ge=2,
        description="most records compared at once; by default 20 for diff_w, 1000 for diff_wo",
    )
    sigmas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        SIGMAS, min_length=1, description="widths of the kernel, not squared"
    )
    floor: float = Field(FLOOR, ge=0, description="smallest squared MMD; less counts as it")
    noise_variance: float = Field(1e-3, gt=0, description="of generator gaussian, on [0, 1]")
    salt_pepper_share: float = Field(
        1e-3, gt=0, le=0.5, description="share of black pixels, and of white, of salt_pepper"
    )
    nu: float = Field(0.9, gt=0, le=1, description="bound on the made-up share one_class rejects")

    def fault(self, shape: tuple[int, ...], *, adaptive: bool) -> str:
        """A generator for images on records that are none."""
        if self.variant != "diff_wo" and self.generator in _FOR_IMAGES and len(shape) != 3:
            return (
                f"generator {self.generator} is for images [channels, height, width], but records "
                f"have shape {list(shape)}: use random_bits, column_shuffle, or leave it out"
            )
        return ""

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """See the class; above 0 it says "member".

        Args:
            query: asked once a record, and `num_generated` times about made-up inputs, except by
                `diff_wo`.
            known: only the kind of records is used.
            x: [N, ...] records.
            y: [N] labels; of a made-up input, that of the record it was made from.
            seed: divides into batches and makes inputs up.

        Returns:
            Finite float64 [N].

        Raises:
            ValueError: if the generator is for images and the records are none.
        """
        fault = self.fault(x.shape[1:], adaptive=False)
        if fault:
            raise ValueError(f"blindmi's {fault}")
        if len(x) == 0:
            return np.empty(0)
        confidence_NC = query(x)
        feature_NF = self._features(confidence_NC, y)
        if self.variant == "one_class":
            made_GF = self._made(query, known.kind, x, y, seed)
            machine = OneClassSVM(kernel="sigmoid", gamma="scale", nu=self.nu).fit(made_GF)
            # Asked about once, equal features get equal scores wherever they stand.
            distinct_UF, where_N = np.unique(feature_NF, axis=0, return_inverse=True)
            return np.asarray(machine.decision_function(distinct_UF), dtype=np.float64)[where_N]

        p_y_N = np.clip(confidence_NC[np.arange(len(y)), y].astype(np.float64), 0.0, 1.0)
        tie_N = 0.25 + 0.5 * p_y_N
        size = self.batch_size or (20 if self.variant == "diff_w" else 1000)
        # By content, so that the order in which records come cannot matter.
        order = np.argsort(keyed_uniform(x, seed, _BATCHES, ()), kind="stable")
        place_SW = _batches(order, size)
        value_N = np.empty(len(x))
        if self.variant == "diff_w":
            made_GF = self._made(query, known.kind, x, y, seed)
            num_others = len(made_GF)
        else:
            top_N = feature_NF.max(axis=1)
            is_high_N = top_N > np.quantile(top_N, 0.5, method="lower")
            num_others = 0
        width = place_SW.shape[1]
        step = max(1, _AT_ONCE // (width * (width + num_others)))
        for start in range(0, len(place_SW), step):
            place = place_SW[start : start + step]
            present, feature = place >= 0, feature_NF[place]
            if self.variant == "diff_w":
                sweeps = survived(feature, present, made_GF, sigmas=self.sigmas, floor=self.floor)
                value = sweeps - width
            else:
                member, _ = exchanged(
                    feature, present, is_high_N[place], sigmas=self.sigmas, floor=self.floor
                )
                value = member.astype(np.int64) - 1
            value_N[place[present]] = value[present]
        return value_N + tie_N

    def _features(self, confidence: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.float64]:
        """[N, 3] what records are compared by; zeros stand in for missing classes."""
        p_NC = np.asarray(confidence, dtype=np.float64)
        usual = "true_label" if self.variant == "diff_w" else "top3"
        if (self.features or usual) == "true_label":
            num_top, first = 2, p_NC[np.arange(len(y)), y][:, None]
        else:
            num_top, first = 3, np.empty((len(y), 0))
        top_NT = -np.sort(-p_NC, axis=1)[:, :num_top]
        missing = np.zeros((len(y), num_top - top_NT.shape[1]))
        return np.concatenate([first, top_NT, missing], axis=1)

    def _made(
        self, query: Classifier, kind: Kind, x: NDArray[Any], y: NDArray[np.int64], seed: int
    ) -> NDArray[np.float64]:
        """[G, 3] features of the service's answers about made-up non-members."""
        order = np.argsort(keyed_uniform(x, seed, _SOURCES, ()), kind="stable")
        source = order[np.arange(self.num_generated) % len(x)]
        rng = np.random.default_rng([seed, _GENERATE])
        # Random bits would be the other choice for bits, but targets are often as sure of them as
        # of members, whereas records with shuffled columns are nearer to the data.
        usual: Generator = "sobel" if kind == "image" else "column_shuffle"
        x_GD = self._generate(self.generator or usual, x[source], rng)
        return self._features(query(x_GD), y[source])

    def _generate(
        self, generator: Generator, x: NDArray[Any], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        match generator:
            case "sobel" | "scharr" | "laplace":
                return edges(x, generator)
            case "gaussian":
                return gaussian_noise(x, self.noise_variance, rng)
            case "salt_pepper":
                return salt_pepper(x, self.salt_pepper_share, rng)
            case "random_bits":
                return random_inputs("binary", x, len(x), rng)
            case "column_shuffle":
                return shuffled(x, rng)


def _batches(order: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Rows in `order` as batches [S, W] of at most `size`, W as small as can be; -1 for nobody."""
    num_batches = -(-len(order) // size)
    width = -(-len(order) // num_batches)
    place_SW = np.full((num_batches, width), -1)
    for batch, rows in enumerate(np.array_split(order, num_batches)):
        place_SW[batch, : len(rows)] = rows
    return place_SW
