"""Before the first epoch: measure, decide what is cached, and fill the cache."""

import dataclasses
import functools
from typing import Any

import numpy as np
import torch

from retailray import events, storage
from retailray.config import TrainConfig
from retailray.data.access import access_of
from retailray.data.decoding import DecodeSpec
from retailray.data.images import limits_of
from retailray.data.scaling import Scaling
from retailray.errors import StorageError
from retailray.execution import Executor, Plan
from retailray.models.blocks import BlockSequence
from retailray.models.weights import Pretrained
from retailray.training.cache import store
from retailray.training.cache.fill import CachePass, FrozenBlocks, cache_spec, fill, fingerprint
from retailray.training.cache.plan import CachePlan, Place, Rows, describe, plan_cache
from retailray.training.cache.store import CacheSpec
from retailray.training.cache.views import ViewSpec
from retailray.training.measure import Measurement, measure
from retailray.training.network import NetworkSpec
from retailray.training.phases import ResolvedPhase
from retailray.training.prepared import Images, Prepared, augmentation

DISK_SHARE = 0.8  # of what is free, whatever the budget says


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """A pretrained model, as every process builds it, and how fast it is where training will run."""

    network_spec: NetworkSpec
    chain: BlockSequence
    measurement: Measurement

    def blocks(self, cut: int) -> FrozenBlocks:
        """The first ``cut`` blocks of the model."""
        return FrozenBlocks(self.network_spec, self.chain, cut, self.measurement.shapes[cut])


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The images of a run, and the place that reads them.

    ``share``: of the cache's budget, that this may take. ``decoded``: where the pixels of both sets lie already; they
    are read in place of the images.
    """

    config: TrainConfig
    images: Images
    plan: Plan
    executor: Executor
    share: float = 1.0
    decoded: Prepared | None = None

    def measure(
        self, model: Pretrained, weights: bytes, labels: list[str], cuts: set[int], *, precision: str
    ) -> MeasuredModel:
        """Measure where training will run: here where that is the same machine without a GPU, else in a task.

        ``weights``: the model's, which every process will read. ``cuts``: the numbers of frozen blocks of which time
        and shape are wanted.
        """
        config, plan = self.config, self.plan
        arguments: dict[str, Any] = {
            "size_px": config.transform.image_size,
            "cuts": sorted(cuts - {0}),
            "precision": precision,
            "use_gpu": plan.actor_gpus > 0,
            "threads": plan.torch_threads,
        }
        if self.executor.num_nodes == 1 and not plan.actor_gpus:
            threads = torch.get_num_threads()
            try:
                measured = measure(model.backbone, len(labels), **arguments)
            finally:
                torch.set_num_threads(threads)
        else:
            reserved = {"cpus": plan.actor_cpus, "gpus": plan.actor_gpus}
            measured = self.executor.call(measure, model.backbone, len(labels), **reserved, **arguments)
        network_spec = NetworkSpec(
            backbone=model.backbone,
            num_classes=len(labels),
            image_size=config.transform.image_size,
            state_ref=self.executor.put(weights),
            mean=model.mean,
            std=model.std,
            precision=measured.precision,
        )
        return MeasuredModel(network_spec, model.chain, measured)

    def decode(self, decided: CachePlan) -> Prepared:
        """Keep the pixels of all images.

        Raises:
            RetailrayError: images or stores cannot be read or written.
        """
        return self._filled(decided, None, required=True)

    def run(self, model: MeasuredModel, phases: list[ResolvedPhase], *, earlier: CachePlan | None = None) -> Prepared:
        """Decide and fill. ``earlier``: what an interrupted run had decided; it is kept to.

        Raises:
            RetailrayError: images or stores cannot be read or written.
        """
        if earlier:
            if not earlier.cuts and not earlier.pixels:
                return _emit_cache_event(Prepared(earlier, {}, {}, self._budget))
            return self._filled(earlier, model, required=True)
        why = self._why_not()
        if why:
            return _emit_cache_event(_nothing(self._budget, why))
        free, budget = store.free_bytes(self._root), self._budget
        decided = plan_cache(
            self.config,
            phases,
            model.measurement,
            rows=Rows(len(self.images.train), len(self.images.plain), augmentation(self.config).source_px),
            place=Place(
                budget=int(self.share * (min(budget, int(free * DISK_SHARE)) if free is not None else budget)),
                num_workers=self.plan.num_actors,
                store_bytes_s=self._store_bytes_s(phases),
            ),
        )
        return self._filled(decided, model, required=False)

    def _store_bytes_s(self, phases: list[ResolvedPhase]) -> float | None:
        """Of the object store that activations would lie in, if there are any."""
        frozen = any(phase.num_cached_blocks for phase in phases) and not self.config.train.cutmix
        if storage.is_local(self._root) or not frozen:
            return None
        try:
            return store.bytes_per_second(self._root)
        except StorageError as error:
            events.emit("warning", note=f"how fast {self._root} is could not be measured: {error}")
            return None

    def _why_not(self) -> str | None:
        """Why nothing can be cached, if so."""
        if self.config.train.cache == "off":
            return "train.cache is off"
        if None in self._fingerprints.values():
            return self._unversioned
        if storage.is_local(self._root) and not store.is_writable(self._root):
            return (
                f"nothing can be written to {self._root}, so nothing is cached; set train.cache_uri to another folder"
            )
        return None

    def _filled(self, decided: CachePlan, model: MeasuredModel | None, *, required: bool) -> Prepared:
        """Fill what is not there yet. ``required``: nothing else will do."""
        root, budget = self._root, self._budget
        if self.config.train.cache == "off":
            return _emit_cache_event(Prepared(decided, {}, {}, budget))
        if None in self._fingerprints.values():
            return _emit_cache_event(_nothing(budget, self._unversioned))
        jobs = self._jobs(decided, model)
        missing = [job for job in (job.missing() for job in jobs) if job.specs]
        absent = sum(len(job.specs) for job in missing)
        events.emit("cache", **describe(decided), reused=sum(len(job.specs) for job in jobs) - absent)
        if missing:
            if not _make_room(root, jobs, missing, budget):
                if required:
                    raise StorageError(
                        f"{root} has no room for what was decided to be cached ({decided.why}); raise train.cache_gb"
                    )
                return _emit_cache_event(_nothing(budget, "others use what the budget allows"))
            views = {job.name: len(job.catalog) * job.views.num_views for job in missing}
            from_pixels = all(job.decoded for job in missing)
            events.emit("pass", reads="cached pixels" if from_pixels else "images", **views)
            access = access_of(self.config.catalog)
            fill(missing, model.network_spec if model else None, self.plan, self.executor, access)
        return _read_back(Prepared(decided, {"train": {}, "plain": {}}, {}, budget), jobs)

    def _jobs(self, decided: CachePlan, model: MeasuredModel | None) -> list[CachePass]:
        """What has to be there for a plan."""
        jobs = []
        sets = {"train": self.images.train, "plain": self.images.plain}
        for which, wanted in _wanted(self.config, decided).items():
            rows = str(self._fingerprints[which])
            for views, cuts in wanted.items():
                assert model or not any(cuts), "pixels alone need no model"
                specs = {
                    cut: cache_spec(
                        self._root,
                        rows=rows,
                        num_rows=len(sets[which]),
                        views=views,
                        blocks=model.blocks(cut) if model and cut else None,
                    )
                    for cut in cuts
                }
                jobs.append(CachePass(which, sets[which], rows, views, specs))
        if self.decoded:
            jobs = [_from_pixels(job, self.decoded.stores[job.name][0], self._budget) for job in jobs]
        return jobs

    @functools.cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        """By set, a digest of its images; None where their store cannot tell versions of an image apart."""
        found = {"train": fingerprint(self.images.train)}
        same = self.images.plain is self.images.train
        return found | {"plain": found["train"] if same else fingerprint(self.images.plain)}

    @property
    def _unversioned(self) -> str:
        return f"the store of {self.config.catalog.uri} cannot tell versions of an image apart, so nothing is cached"

    @property
    def _budget(self) -> int:
        return int(self.config.train.cache_gb * 1e9)

    @property
    def _root(self) -> str:
        """The cache folder: train.cache_uri, else on the local disk; with several machines, below ``out``."""
        if self.config.train.cache_uri:
            return self.config.train.cache_uri
        return storage.join(self.config.out, "cache") if self.executor.num_nodes > 1 else storage.cache_folder()


def _nothing(budget: int, why: str) -> Prepared:
    return Prepared(CachePlan(1, (), False, 0, why), {}, {}, budget)


def _emit_cache_event(prepared: Prepared) -> Prepared:
    events.emit("cache", **describe(prepared.plan))
    return prepared


def _from_pixels(job: CachePass, pixels: CacheSpec, budget: int) -> CachePass:
    """With the pixels that lie there already, where the square that is wanted is whole pixels from their edges."""
    margin = pixels.shape[-1] - job.views.decode.size_px
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
            decode=DecodeSpec(Scaling(transform.resolved_resize_size, side), limits_of(config.catalog)),
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
