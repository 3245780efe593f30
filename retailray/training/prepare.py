"""Before the first epoch: measure, decide what is cached, fill the cache, and open each split."""

import dataclasses
from typing import Any

import numpy as np
import torch

from retailray import events, storage
from retailray.config import TrainConfig
from retailray.data.access import access_of
from retailray.data.catalog import Catalog
from retailray.data.decoding import DecodeSpec
from retailray.data.images import limits_of
from retailray.errors import StorageError
from retailray.execution import Executor, Plan
from retailray.models.blocks import BlockSequence
from retailray.training.batches import Augmentation, CachedDataset
from retailray.training.cache import store
from retailray.training.cache.fill import CachePass, fill, fingerprint, make_spec
from retailray.training.cache.plan import CachePlan, describe, plan_cache
from retailray.training.cache.store import CacheSpec
from retailray.training.cache.views import ViewSpec
from retailray.training.measure import Measurement, measure
from retailray.training.network import Backbone
from retailray.training.phases import ResolvedPhase

DISK_SHARE = 0.8  # of what is free, whatever the budget says


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


def measure_here(
    config: TrainConfig, num_classes: int, cuts: set[int], plan: Plan, executor: Executor, *, precision: str
) -> Measurement:
    """Measure where training will run: in this process where that is the same machine without a GPU, else in a task.

    ``cuts``: the numbers of frozen blocks of which time and shape are wanted.
    """
    arguments: dict[str, Any] = {
        "size_px": config.transform.image_size,
        "cuts": sorted(cuts - {0}),
        "precision": precision,
        "use_gpu": plan.actor_gpus > 0,
        "threads": plan.torch_threads,
    }
    if executor.num_nodes == 1 and not plan.actor_gpus:
        threads = torch.get_num_threads()
        try:
            return measure(config.model.arch, num_classes, **arguments)
        finally:
            torch.set_num_threads(threads)
    reserved = {"cpus": plan.actor_cpus, "gpus": plan.actor_gpus}
    return executor.call(measure, config.model.arch, num_classes, **reserved, **arguments)


def prepare(
    config: TrainConfig,
    images: Images,
    phases: list[ResolvedPhase],
    backbone: Backbone | None,
    chain: BlockSequence | None,
    measured: Measurement | None,
    plan: Plan,
    executor: Executor,
    *,
    earlier: CachePlan | None = None,
    share: float = 1.0,
    decoded: Prepared | None = None,
) -> Prepared:
    """Decide and fill.

    Args:
        backbone, chain, measured: None where ``earlier`` keeps nothing but pixels.
        earlier: what has been decided already (by the run that was interrupted, say); it is kept to.
        share: of the budget, that this may take.
        decoded: where the pixels of both sets lie already; they are read in place of the images.

    Raises:
        RetailrayError: images or stores cannot be read or written.
    """
    root = _root(config, executor.num_nodes)
    budget = int(config.train.cache_gb * 1e9)
    nothing = Prepared(CachePlan(1, (), False, 0, "train.cache is off"), {}, {}, budget)
    if config.train.cache == "off" or (earlier and not earlier.cuts and not earlier.pixels):
        return _emit_cache_event(nothing if earlier is None else dataclasses.replace(nothing, plan=earlier))
    sets = {"train": images.train, "plain": images.plain}
    rows = {"train": fingerprint(images.train)}
    rows["plain"] = rows["train"] if images.plain is images.train else fingerprint(images.plain)
    if None in rows.values():
        why = f"the store of {config.catalog.uri} cannot tell versions of an image apart, so nothing is cached"
        return _emit_cache_event(dataclasses.replace(nothing, plan=CachePlan(1, (), False, 0, why)))
    free = store.free_bytes(root)
    if not earlier and storage.is_local(root) and not store.is_writable(root):
        why = f"nothing can be written to {root}, so nothing is cached; set train.cache_uri to another folder"
        return _emit_cache_event(dataclasses.replace(nothing, plan=CachePlan(1, (), False, 0, why)))
    decided = earlier or plan_cache(
        config,
        phases,
        measured,  # type: ignore[arg-type]  # there, where something is to be decided
        num_train=len(images.train),
        num_plain=len(images.plain),
        budget=int(share * (min(budget, int(free * DISK_SHARE)) if free is not None else budget)),
        source_px=augmentation(config).source_px,
    )
    digests = {name: str(digest) for name, digest in rows.items()}
    jobs = _jobs(config, root, sets, digests, decided, measured, backbone, chain)
    if decoded:
        jobs = [_from_pixels(job, decoded.stores[job.name][0], budget) for job in jobs]
    missing = [job for job in (job.missing() for job in jobs) if job.specs]
    absent = sum(len(job.specs) for job in missing)
    events.emit("cache", **describe(decided), reused=sum(len(job.specs) for job in jobs) - absent)
    if missing:
        if not _make_room(root, jobs, missing, budget):
            if earlier:
                raise StorageError(
                    f"{root} has no room for the cache of the interrupted run ({decided.why}); raise train.cache_gb"
                )
            why = "others use what the budget allows"
            return _emit_cache_event(dataclasses.replace(nothing, plan=CachePlan(1, (), False, 0, why)))
        views = {job.name: len(job.catalog) * job.views.num_views for job in missing}
        kept = all(job.decoded for job in missing)
        events.emit("pass", reads="cached pixels" if kept else "images", **views)
        fill(missing, backbone, plan, executor, access_of(config.catalog))
    return _read_back(Prepared(decided, {"train": {}, "plain": {}}, {}, budget), jobs)


def _jobs(
    config: TrainConfig,
    root: str,
    sets: dict[str, Catalog],
    rows: dict[str, str],
    decided: CachePlan,
    measured: Measurement | None,
    backbone: Backbone | None,
    chain: BlockSequence | None,
) -> list[CachePass]:
    """What has to be there for a plan. ``rows``: the fingerprint of each set."""
    jobs = []
    for which, wanted in _wanted(config, decided).items():
        for views, cuts in wanted.items():
            specs = {
                cut: make_spec(
                    root=root,
                    rows=rows[which],
                    num_rows=len(sets[which]),
                    views=views,
                    cut=cut,
                    backbone=backbone,
                    chain=chain,
                    shape=measured.shapes[cut] if measured and cut else (3, views.crop_size, views.crop_size),
                )
                for cut in cuts
            }
            jobs.append(CachePass(which, sets[which], rows[which], views, specs))
    return jobs


def _from_pixels(job: CachePass, pixels: CacheSpec, budget: int) -> CachePass:
    """With the pixels that lie there already, where the square that is wanted is whole pixels from their edges."""
    margin = pixels.shape[-1] - job.views.decode.crop_size
    fits = margin >= 0 and margin % 2 == 0
    return dataclasses.replace(job, decoded=pixels, budget=budget) if fits else job


def _read_back(prepared: Prepared, jobs: list[CachePass]) -> Prepared:
    """With the stores of all jobs and the error codes of their rows."""
    for job in jobs:
        prepared.stores[job.name] |= job.specs
        for spec in job.specs.values():
            store.touch(spec)
            codes = store.read_codes(spec).column("error_code").to_numpy(zero_copy_only=False)
            known = prepared.codes.get(job.name, codes)  # a row that is missing in one store is left out of all
            prepared.codes[job.name] = np.where(known != "", known, codes)
    return prepared


def _wanted(config: TrainConfig, decided: CachePlan) -> dict[str, dict[ViewSpec, list[int]]]:
    """The passes over each set of images: what is decoded how, and after which blocks it is kept."""
    transform, crop = config.transform, config.transform.image_size
    source = augmentation(config).source_px

    def views(side: int, *, augmented: bool) -> ViewSpec:
        return ViewSpec(
            decode=DecodeSpec(transform.resolved_resize_size, side, limits_of(config.catalog)),
            augment=transform.augment if augmented else "none",
            random_erasing_prob=transform.random_erasing_prob if augmented else 0.0,
            crop_size=crop if augmented else side,
            num_views=decided.views if augmented else 1,
            seed=config.train.seed,
        )

    wanted: dict[str, dict[ViewSpec, list[int]]] = {"train": {}, "plain": {}}
    if decided.cuts:
        wanted["train"].setdefault(views(source, augmented=True), []).extend(decided.cuts)
        wanted["plain"].setdefault(views(crop, augmented=False), []).extend(decided.cuts)
    if decided.pixels:
        wanted["train"].setdefault(views(source, augmented=False), []).append(0)
        wanted["plain"].setdefault(views(crop, augmented=False), []).append(0)
    return wanted


def _make_room(root: str, jobs: list[CachePass], missing: list[CachePass], budget: int) -> bool:
    absent = {spec.key: spec.num_bytes for job in missing for spec in job.specs.values()}
    keep = {spec.key for job in jobs for spec in job.specs.values()} - absent.keys()
    try:
        evicted = store.make_room(root, sum(absent.values()), budget, keep=keep, writing=set(absent))
    except StorageError as error:
        events.emit("warning", note=str(error))
        return False
    if evicted:
        events.emit("evicted", stores=evicted, reason=f"train.cache_gb = {budget / 1e9:g}")
    return True


def _root(config: TrainConfig, num_nodes: int) -> str:
    """Where stores are: as asked, else on this machine's disk, or beside the results where machines are several."""
    if config.train.cache_uri:
        return config.train.cache_uri
    return storage.join(config.out, "cache") if num_nodes > 1 else storage.cache_folder()


def _emit_cache_event(prepared: Prepared) -> Prepared:
    events.emit("cache", **describe(prepared.plan))
    return prepared
