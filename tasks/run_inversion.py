"""Task: how near an attack comes to records it rebuilds from a service's answers about them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Records
from storage.artifacts import Artifact, Draft
from tasks import images
from tasks.base import random_generator, stream
from tasks.data_attack import DataAttack
from tasks.identity import Identity
from tasks.image_grid import image_grid
from tasks.inversion_metrics import HEADLINE, deviation, guesses, inversion_metrics
from tasks.knowledge import Held, Knowledge
from tasks.service import Query
from tasks.train_target import TrainTarget
from tasks.worker import Bench

if TYPE_CHECKING:
    from tasks.run_attack import ShadowModels

__all__ = ["EXAMPLES", "RunInversion"]

EXAMPLES = 8  # of members, and as many others, whose originals and reconstructions are kept


@dataclass(frozen=True, eq=False)
class RunInversion(DataAttack):
    """Reconstructions of the judged records, and what guessing would get.

    The attacker holds records that are known to be no members (`Knowledge.population`), and asks
    the service about them, which is counted. Of the judged records it sees the answers, never the
    records. Two guesses stand beside its error: the mean of the attacker's records, and their mean
    within the record's true class, which is about what a label tells of it.

    Images are also shown to a network that knows nothing of target or attack: it is trained on
    the reference records (D2), without those that are judged or equal them. Of these the most
    alike to a reconstruction, by its last hidden layer, may be of the record's class: that is
    re-identification where classes are persons, and recognition elsewhere. The cosine is that
    layer's for record and reconstruction.

    Attributes:
        identity: that network; None where records are no images.

    Source: methods.md section 7.1, where it replaces the face service of the PURIFIER paper.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 60.0
    TABLES: ClassVar[tuple[str, ...]] = ("inversion",)

    identity: TrainTarget | None = None

    def run(self, bench: Bench, draft: Draft) -> None:
        """Rebuild, then join records and membership."""
        target = self.answers.target
        dataset, split = bench.dataset(target.split.data), bench.split(target.split)
        rows, is_member = self.judged(bench)
        held = Held.of(dataset, split, self.judge, None)
        flags = self.flags(bench, held.population_rows, rows, is_member)
        query = Query(self.answers.service(bench), self.attack.ACCESS)
        returned = self.attack.reconstruct(
            self.released(rows, bench),
            self._knowledge(bench, held, query),
            seed=stream(self.seed, f"attack.fit/{self.name}"),
        )
        x, y = dataset.x(rows), dataset.y[rows]
        rebuilt = self._checked(returned, x.shape)
        by_record: dict[str, NDArray[Any]] = {HEADLINE: images.mse(x, rebuilt)}
        own = Records(*held.x_of(held.population_rows))
        mean_N, class_mean_N = guesses(own, y)
        std = deviation(dataset.x(split.members))
        by_record["normalised_error"] = images.mse(x, rebuilt, std=std)
        facts: dict[str, Any] = {
            "num_known": len(own),
            "num_queries": query.num_queries,
            "mean_error": float(images.mse(x, mean_N).mean()),
            "class_mean_error": float(images.mse(x, class_mean_N).mean()),
            "normalised_mean_error": float(images.mse(x, mean_N, std=std).mean()),
        }
        if self.identity is not None:
            by_record["ssim"] = images.ssim(x, rebuilt)
            network = Identity.of(self.identity, bench)
            of_true, of_rebuilt = network.hidden(x), network.hidden(rebuilt)
            by_record["reidentified"] = network.names(of_rebuilt, y)
            by_record["cosine"] = images.cosine_similarity(of_true, of_rebuilt)
            facts["reidentified_originals"] = float(network.names(of_true, y).mean())
            _keep_examples(draft, x, rebuilt, rows, is_member, self.seed)
        draft.table("records", {"record": rows, "is_member": is_member, **by_record})
        figures = inversion_metrics(by_record, is_member)
        if figures[HEADLINE] >= facts["mean_error"]:
            flags.append("no_better_than_mean")
        draft.facts("metrics", {**figures, **facts, "flags": sorted(flags)})

    def _knowledge(self, bench: Bench, held: Held, query: Query) -> Knowledge:
        """What the attacker has; no models, as nothing asked for any while planning."""
        fit, cal = held.told

        def none() -> "ShadowModels":
            raise TypeError("an attack that rebuilds records has no shadow models")

        return Knowledge(
            held=held,
            threat_model=self.attack.THREAT_MODEL,
            told_fit=fit,
            told_cal=cal,
            query=query,
            trained=(),
            shadow_models=none,
            architecture=self.answers.target.architecture,
            device=bench.device,
        )

    def _checked(self, returned: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
        rebuilt = np.asarray(returned, dtype=np.float64)
        bad = int((~np.isfinite(rebuilt)).sum())
        if rebuilt.shape != shape or bad:
            raise ValueError(
                f"attack '{self.name}' must return finite records {list(shape)}, it returned "
                f"shape {list(rebuilt.shape)} with {bad} values not finite"
            )
        return rebuilt

    def table_rows(self, artifact: Artifact) -> dict[str, Any]:
        """The result row."""
        return {"inversion": [self.row(artifact)]}


def _keep_examples(
    draft: Draft,
    x: NDArray[Any],
    rebuilt: NDArray[np.float64],
    rows: NDArray[np.int64],
    is_member: NDArray[np.bool_],
    seed: int,
) -> None:
    """Some members and some others beside their reconstructions, the same for every defense."""
    # By row number, as the order asked could be another task's.
    by_row = np.argsort(rows)
    chosen: list[NDArray[np.int64]] = []
    for side in (is_member, ~is_member):
        places = by_row[side[by_row]]
        rng = random_generator(seed, f"inversion.examples/{len(chosen)}")
        chosen.append(places[np.sort(rng.permutation(len(places))[:EXAMPLES])])
    places = np.concatenate(chosen)
    original, shown = (np.rint(255 * a[places].clip(0, 1)).astype(np.uint8) for a in (x, rebuilt))
    arrays = {"original": original, "rebuilt": shown, "is_member": is_member[places]}
    draft.arrays("examples", {**arrays, "record": rows[places]})
    draft.image("examples", image_grid([original, shown], is_member[places]))
