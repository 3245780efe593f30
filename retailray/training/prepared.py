"""What is there before the first epoch: images, and where each phase reads its rows."""

import dataclasses

import numpy as np

from retailray.config import TrainConfig
from retailray.data.catalog import Catalog
from retailray.training.batches import Augmentation, CachedDataset
from retailray.training.cache.plan import CachePlan
from retailray.training.cache.store import CacheSpec
from retailray.training.phases import ResolvedPhase


@dataclasses.dataclass(frozen=True)
class Images:
    """Two sets of images, possibly the same: what is trained on, in augmented views, and what is looked at plainly."""

    train: Catalog
    plain: Catalog


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Stores by set (``train``, ``plain``) and number of blocks, and the error code of every image where they tell."""

    plan: CachePlan
    stores: dict[str, dict[int, CacheSpec]]
    codes: dict[str, np.ndarray]
    budget: int

    def source(
        self, which: str, phase: ResolvedPhase, rows: np.ndarray, targets: np.ndarray, row_ids: np.ndarray
    ) -> tuple[CachedDataset, int] | None:
        """Usable ``rows`` of a set for a phase, and the blocks they went through; None where pixels are streamed.

        ``rows``: where they lie in the caches. ``targets``, ``row_ids``: of these rows.
        """
        reads = self.plan.num_cached_blocks(phase)
        if reads is None:
            return None
        usable = (self.codes[which][rows] == "") & (targets >= 0)
        spec = self.stores[which][reads]
        return CachedDataset(spec, rows[usable], targets[usable], row_ids[usable], self.budget), reads


def augmentation(config: TrainConfig) -> Augmentation:
    transform = config.transform
    still = transform.augment == "none"
    source = transform.image_size if still else transform.resolved_resize_size
    return Augmentation(transform.augment, transform.random_erasing_prob, source, transform.image_size)
