"""What the trials of a search share: images decoded once, frozen blocks run once for each backbone and augmentation."""

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
from retailray.models.blocks import to_blocks
from retailray.models.bundle import state_to_bytes
from retailray.models.weights import pretrained_model
from retailray.training.batches import CachedDataset
from retailray.training.cache import store
from retailray.training.cache.plan import CachePlan
from retailray.training.network import Backbone
from retailray.training.phases import ResolvedPhase, check_batch_size, resolve
from retailray.training.prepare import Images, Prepared, augmentation, measure_here, prepare
from retailray.training.rows import class_weights, targets_of, with_roles

VARYING = ("model.arch", "transform.augment", "transform.random_erasing_prob")  # what asks for a pass of its own
Key = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One backbone and one augmentation: where its trials read, how fast the whole model is and how large."""

    backbone: Backbone
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
        return self.config.trial(drawn, **{"train.precision": variant.backbone.precision})

    def decisions(self) -> dict[str, object]:
        """What was measured and decided, for a resumed search to keep to."""
        return {
            _text(key): {
                "precision": one.backbone.precision,
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


def share(
    config: TuneConfig,
    splits: dict[str, Catalog],
    labels: list[str],
    plan: Plan,
    trial_plan: TrialPlan,
    executor: Executor,
    records: str,
    earlier: dict[str, Any],
) -> Shared:
    """Decode once, run frozen blocks once for every depth worth keeping.

    ``earlier``: :meth:`Shared.decisions` of a search that is gone on with, or nothing.

    Raises:
        StorageError: there is no room for what the trials have to read.
        RetailrayError: images, weights or stores cannot be read or written.
    """
    images = Images(splits["train"], splits["validation"])
    variants = [config.trial(dict(zip(VARYING, values, strict=True))) for values in _combinations(config)]
    decoded = _decode_once(config, images, variants, plan, executor) if len(variants) > 1 else None
    prepared = {}
    for one in variants:
        key = variant_key(one)
        known = earlier.get(_text(key))
        prepared[key] = _variant(config, one, images, labels, plan, executor, decoded, len(variants), known)
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


def _combinations(config: TuneConfig) -> list[tuple[object, ...]]:
    """Every backbone with every augmentation of the space."""
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


def _variant(
    config: TuneConfig,
    one: TrainConfig,
    images: Images,
    labels: list[str],
    plan: Plan,
    executor: Executor,
    decoded: Prepared | None,
    num_variants: int,
    earlier: dict[str, Any] | None,
) -> Variant:
    """Load a backbone, measure it, and keep what all depths of the space want of it."""
    size, seed = one.transform.image_size, one.train.seed
    network, mean, std = pretrained_model(
        one.model.arch, one.model.resolved_weights, len(labels), seed=seed, image_size=size
    )
    chain = to_blocks(network)
    depths = _depths(config)
    drawn = dict(zip(VARYING, variant_key(one), strict=True))
    each = max(1, config.tune.trials // (len(depths) * num_variants))  # trials of a depth, so many times its epochs
    phases = [
        dataclasses.replace(phase, epochs=phase.epochs * each)
        for depth in depths
        for phase in resolve(config.trial(drawn | ({"model.trainable": depth} if depth else {})), chain)
    ]
    sizes = config.space["train.batch_size"].corners if "train.batch_size" in config.space else []
    check_batch_size(
        phases,
        batch_size=min([*sizes, *([] if sizes else [config.train.batch_size])]),
        num_workers=config.tune.workers_per_trial,
        num_rows=len(images.train),
    )
    cuts = {phase.num_cached_blocks for phase in phases} | {len(chain.blocks)}
    precision = earlier["precision"] if earlier else config.train.precision
    weights = state_to_bytes(network.state_dict())
    digest = hashlib.sha256(weights).hexdigest()
    if earlier and earlier["weights"] != digest:
        raise ConfigError([f"tune.resume: {one.model.resolved_weights} changed since the search was interrupted"])
    measured = measure_here(one, len(labels), cuts, plan, executor, precision=precision)
    backbone = Backbone(
        arch=one.model.arch,
        num_classes=len(labels),
        image_size=size,
        state_ref=executor.put(weights),
        mean=mean,
        std=std,
        precision=measured.precision,
    )
    part = 1 / (num_variants + (decoded is not None))
    kept = CachePlan(**earlier["cache"]) if earlier else None
    found = prepare(
        one, images, phases, backbone, chain, measured, plan, executor, earlier=kept, share=part, decoded=decoded
    )
    if any(found.plan.num_cached_blocks(phase) is None for phase in phases):
        raise StorageError(
            f"trials read cached images and activations only, and the cache cannot hold them: {found.plan.why}; "
            "raise train.cache_gb, or leave depths or augmentations out of tune.space"
        )
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return Variant(backbone, found, digest, 1 / measured.seconds[len(chain.blocks)], num_parameters)


def _decode_once(
    config: TuneConfig, images: Images, variants: list[TrainConfig], plan: Plan, executor: Executor
) -> Prepared | None:
    """Cache the pixels of all images at the largest side that a variant reads; None where there is no room."""
    largest = max(variants, key=lambda one: augmentation(one).source_px)
    source, size = augmentation(largest).source_px, config.transform.image_size
    num_bytes = 3 * (len(images.train) * source**2 + len(images.plain) * size**2)
    why = f"decoded once for {len(variants)} passes: {num_bytes / 1e9:.2f} GB"
    if num_bytes > config.train.cache_gb * 1e9 / (len(variants) + 1):
        events.emit("warning", note=f"images are decoded in every pass: {why} exceed their share of the budget")
        return None
    try:
        return prepare(
            largest, images, [], None, None, None, plan, executor, earlier=CachePlan(1, (), True, num_bytes, why)
        )
    except StorageError as error:
        events.emit("warning", note=f"images are decoded in every pass: {error}")
        return None
