"""What the trials of a search share: images decoded once, frozen blocks run once for each network and augmentation."""

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np

from retailray import events
from retailray.config import TrainConfig, TuneConfig
from retailray.data.catalog import Catalog
from retailray.errors import CatalogError, ConfigError, StorageError
from retailray.execution import Executor, Plan, TrialPlan
from retailray.models.blocks import BlockSequence
from retailray.models.bundle import state_to_bytes
from retailray.models.weights import pretrained_model
from retailray.training.batches import CachedDataset
from retailray.training.cache import store
from retailray.training.cache.plan import CachePlan
from retailray.training.network import NetworkSpec
from retailray.training.phases import ResolvedPhase, check_batch_size, resolve
from retailray.training.prepare import Preparation
from retailray.training.prepared import Images, Prepared, augmentation
from retailray.training.rows import class_weights, targets_of, with_roles

VARYING = ("model.arch", "transform.augment", "transform.random_erasing_prob")  # what asks for a pass of its own
Key = tuple[str, str, float]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network and one augmentation: where its trials read, how fast the whole model is and how large."""

    network_spec: NetworkSpec
    prepared: Prepared
    weights: str  # a digest of what trials begin with
    images_per_s: float
    num_parameters: int


@dataclasses.dataclass(frozen=True)
class Shared:
    """All that a trial needs besides the settings that were drawn for it. ``rows``: by split, where they lie in the
    caches; ``targets`` and ``row_ids``: of these rows, all ``(N,)``."""

    config: TuneConfig
    labels: list[str]
    rows: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    row_ids: dict[str, np.ndarray]
    class_weights: list[float]
    variants: dict[Key, Variant]
    plan: TrialPlan
    records: str

    def trial(self, drawn: dict[str, object]) -> TrainConfig:
        """The settings of a trial, in the precision that was measured once for all."""
        variant = self.variants[variant_key(self.config.trial(drawn))]
        return self.config.trial(drawn, **{"train.precision": variant.network_spec.precision})

    def decisions(self) -> dict[str, object]:
        """What was measured and decided, for a resumed search to keep to."""
        return {
            _text(key): {
                "precision": one.network_spec.precision,
                "cache": dataclasses.asdict(one.prepared.plan),
                "weights": one.weights,
            }
            for key, one in self.variants.items()
        }

    @property
    def is_population(self) -> bool:
        return self.config.tune.scheduler == "pbt"

    def touch(self) -> None:
        """Mark the stores that trials read as in use."""
        for one in self.variants.values():
            for specs in one.prepared.stores.values():
                for spec in specs.values():
                    store.touch(spec)

    def source(self, variant: Variant, name: str, phase: ResolvedPhase) -> tuple[CachedDataset, int]:
        """Rows of ``train`` or of a part of the validation rows for a phase, and the blocks they went through."""
        which = "train" if name == "train" else "plain"
        found = variant.prepared.source(which, phase, self.rows[name], self.targets[name], self.row_ids[name])
        assert found, "a search streams nothing"
        return found


def variant_key(config: TrainConfig) -> Key:
    return (config.model.arch, config.transform.augment, config.transform.random_erasing_prob)


def _text(key: Key) -> str:
    return " ".join(map(str, key))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a search is made from, and where its images are read."""

    config: TuneConfig
    splits: dict[str, Catalog]
    labels: list[str]
    plan: Plan
    executor: Executor

    @property
    def images(self) -> Images:
        return Images(self.splits["train"], self.splits["validation"])

    def share(self, trial_plan: TrialPlan, records: str, earlier: dict[str, Any]) -> Shared:
        """Decode once, run frozen blocks once for every depth worth keeping.

        ``records``: where trials leave what they did. ``earlier``: :meth:`Shared.decisions` of a search that is gone
        on with, or nothing.

        Raises:
            StorageError: there is no room for what the trials have to read.
            RetailrayError: images, weights or stores cannot be read or written.
        """
        config, splits, labels = self.config, self.splits, self.labels
        variants = [config.trial(dict(zip(VARYING, values, strict=True))) for values in _combinations(config)]
        decoded = self._decode_once(variants) if len(variants) > 1 else None
        prepared = {}
        for one in variants:
            key, share = variant_key(one), 1 / (len(variants) + (decoded is not None))
            preparation = Preparation(one, self.images, self.plan, self.executor, share=share, decoded=decoded)
            prepared[key] = self._variant(preparation, len(variants), earlier.get(_text(key)))
        rows = {name: np.arange(len(part)) for name, part in splits.items()}
        rows = with_roles(rows, splits["validation"], labels, seed=config.split.seed)
        parts = {name: splits["train" if name == "train" else "validation"] for name in rows}
        targets = {name: targets_of(parts[name].column("label")[chosen], labels) for name, chosen in rows.items()}
        row_ids = {name: parts[name].column("row_id")[chosen] for name, chosen in rows.items()}
        for name in list(rows):
            codes = next(iter(prepared.values())).prepared.codes["train" if name == "train" else "plain"]
            if not ((codes[rows[name]] == "") & (targets[name] >= 0)).any():
                if name in ("train", "validation"):
                    raise CatalogError(f"{config.catalog.uri}: no {name} image could be read; see `retailray check`")
                del rows[name]  # their images failed: nothing is promised then
        weights = class_weights(splits["train"].column("label"), labels)
        return Shared(config, labels, rows, targets, row_ids, weights, prepared, trial_plan, records)

    def _variant(self, preparation: Preparation, num_variants: int, earlier: dict[str, Any] | None) -> Variant:
        """Load a network, measure it, and keep what all depths of the space want of it."""
        one, size = preparation.config, preparation.config.transform.image_size
        source = one.model.resolved_weights
        model = pretrained_model(one.model.arch, source, len(self.labels), seed=one.train.seed, image_size=size)
        chain = model.chain
        phases = self._phases(one, chain, num_variants)
        precision = earlier["precision"] if earlier else self.config.train.precision
        cuts = {phase.num_cached_blocks for phase in phases} | {len(chain.blocks)}
        weights = state_to_bytes(model.network.state_dict())
        digest = hashlib.sha256(weights).hexdigest()
        if earlier and earlier["weights"] != digest:
            raise ConfigError([f"tune.resume: {source} changed since the search was interrupted"])
        measured = preparation.measure(model, weights, self.labels, cuts, precision=precision)
        found = preparation.run(measured, phases, earlier=CachePlan(**earlier["cache"]) if earlier else None)
        if any(found.plan.num_cached_blocks(phase) is None for phase in phases):
            raise StorageError(
                f"trials read cached images and activations only, and the cache cannot hold them: {found.plan.why}; "
                "raise train.cache_gb, or leave depths or augmentations out of tune.space"
            )
        num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
        images_per_s = 1 / measured.measurement.seconds[len(chain.blocks)]
        return Variant(measured.network_spec, found, digest, images_per_s, num_parameters)

    def _phases(self, one: TrainConfig, chain: BlockSequence, num_variants: int) -> list[ResolvedPhase]:
        """The phases of all depths of the space, each with the epochs of all its trials."""
        config, depths = self.config, _depths(self.config)
        drawn = dict(zip(VARYING, variant_key(one), strict=True))
        each = max(1, config.tune.trials // (len(depths) * num_variants))  # trials of a depth
        phases = [
            dataclasses.replace(phase, epochs=phase.epochs * each)
            for depth in depths
            for phase in resolve(config.trial(drawn | ({"model.trainable": depth} if depth else {})), chain)
        ]
        sizes = config.space["train.batch_size"].corners if "train.batch_size" in config.space else []
        check_batch_size(
            phases,
            batch_sizes=sizes or [config.train.batch_size],
            num_workers=config.tune.workers_per_trial,
            num_rows=len(self.splits["train"]),
            device_batch_size=config.train.device_batch_size,
        )
        return phases

    def _decode_once(self, variants: list[TrainConfig]) -> Prepared | None:
        """Cache the pixels of all images at the largest side that a variant reads; None where there is no room."""
        config, images = self.config, self.images
        largest = max(variants, key=lambda one: augmentation(one).source_px)
        source, size = augmentation(largest).source_px, config.transform.image_size
        num_bytes = 3 * (len(images.train) * source**2 + len(images.plain) * size**2)
        why = f"decoded once for {len(variants)} passes: {num_bytes / 1e9:.2f} GB"
        if num_bytes > config.train.cache_gb * 1e9 / (len(variants) + 1):
            events.emit("warning", note=f"images are decoded in every pass: {why} exceed their share of the budget")
            return None
        try:
            decided = CachePlan(1, (), True, num_bytes, why)
            return Preparation(largest, images, self.plan, self.executor).decode(decided)
        except StorageError as error:
            events.emit("warning", note=f"images are decoded in every pass: {error}")
            return None


def _combinations(config: TuneConfig) -> list[tuple[object, ...]]:
    """Every network with every augmentation of the space."""
    own: dict[str, object] = {"model.arch": config.model.arch}
    own |= {
        "transform.augment": config.transform.augment,
        "transform.random_erasing_prob": config.transform.random_erasing_prob,
    }
    choices = []
    for key in VARYING:
        domain = config.space.get(key)
        choices.append(domain.corners if domain else [own[key]])
    return list(itertools.product(*choices))


def _depths(config: TuneConfig) -> list[str | None]:
    domain = config.space.get("model.trainable")
    return domain.corners if domain else [None]
