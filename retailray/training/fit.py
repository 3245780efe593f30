"""One fit: images and their splits in, history and the best epoch's weights out."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from retailray.config import TrainConfig
from retailray.data.access import access_of
from retailray.data.catalog import Catalog
from retailray.data.decoding import (
    CHUNK_ROWS,
    CODE,
    PADDING,
    PIXELS,
    DecodeSpec,
    blocks_of,
    decode_rows,
    transport_table,
)
from retailray.data.images import limits_of
from retailray.data.row_ids import ROW_ID
from retailray.data.scaling import Scaling
from retailray.errors import CatalogError, Diverged
from retailray.execution import Executor, FitOptions, Plan, Stream
from retailray.models.calibration import Calibration
from retailray.training.batches import TARGET, CachedDataset, StreamedDataset
from retailray.training.best_epoch import Epoch
from retailray.training.network import NetworkSpec
from retailray.training.numbers import TrueValues
from retailray.training.phases import ResolvedPhase, min_rows
from retailray.training.prepared import Images, Prepared, augmentation
from retailray.training.rows import class_weights, targets_of, with_roles
from retailray.training.worker import FitConfig, work

# a data set, and the number of frozen blocks that its rows went through
Source = tuple[CachedDataset | StreamedDataset, int]
KEEP_DECODED = 0.2  # of the object store, for each split; above it images are decoded again in every epoch


@dataclasses.dataclass(frozen=True)
class FitResult:
    """``best``: the trained tensors of the best epoch. ``test``: what `Validator.guesses` returns for it."""

    history: list[Epoch]
    best_epoch: int
    best: dict[str, torch.Tensor]
    calibration: Calibration
    errors_by_code: dict[str, int]
    test: tuple[np.ndarray, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Fitter:
    """What the fits of one run share: the model of the run, and one per fold."""

    config: TrainConfig
    images: Images
    labels: list[str]
    phases: list[ResolvedPhase]
    network_spec: NetworkSpec
    prepared: Prepared
    plan: Plan
    executor: Executor
    known: TrueValues | None = None

    def fit(self, rows: dict[str, np.ndarray], checkpoints: str, tags: Mapping[str, object]) -> FitResult:
        """Fine-tune on ``rows``: ``train`` of ``images.train``, ``validation`` (and ``test``) of ``images.plain``.

        A fit that finds checkpoints at ``checkpoints``, an address that all nodes can write, continues from the last
        one.

        Raises:
            RetailrayError: a worker failed more often than ``train.max_failures``; the first line of its reason.
            Diverged: no epoch has a finite validation loss.
        """
        config = self.config
        rows = with_roles(rows, self.images.plain, self.labels, seed=config.split.seed)
        with self.executor.in_order():  # the order of rows is part of what a seed repeats
            sources, streams = self._sources(rows)
            failed = _stored_failures(self.prepared, "train", rows["train"])
            balanced = config.train.class_weights == "balanced"
            with self.executor.reporter("epochs", sum(phase.epochs for phase in self.phases)) as reporter:
                fit_config = FitConfig(
                    network_spec=self.network_spec,
                    phases=self.phases,
                    train=config.train,
                    augmentation=augmentation(config),
                    class_weights=class_weights(self.images.train.column("label")[rows["train"]], self.labels)
                    if balanced
                    else None,
                    known=self.known,
                    sources=sources,
                    min_rows=min_rows(self.phases),
                    threads=self.plan.torch_threads,
                    reporter=reporter,
                    tags=tags,
                )
                options = FitOptions(config.train.max_failures, config.cluster.min_workers, config.cluster.placement)
                found, state = self.executor.fit(
                    work, fit_config, streams, self.plan, options=options, checkpoints=checkpoints
                )
        if not found["best_epoch"] and found["history"][0]["validation_rows"]:
            raise Diverged(
                "training diverged: no epoch has a finite validation loss; lower train.head_lr and train.backbone_lr "
                "(or those of train.phases)"
            )
        return FitResult(
            history=found["history"],
            best_epoch=found["best_epoch"],
            best=state["best"],
            calibration=found["calibration"],
            errors_by_code=failed or found["codes"],
            test=found.get("test"),
        )

    def _sources(self, rows: dict[str, np.ndarray]) -> tuple[dict[str, list[Source]], dict[str, Stream]]:
        """Return, by split, where each phase reads its rows, and the streams of splits that are not cached.

        Raises:
            CatalogError: no image of a split could be read.
        """
        sources: dict[str, list[Source]] = {}
        streams: dict[str, Stream] = {}
        for split, chosen in rows.items():
            which, catalog = ("train", self.images.train) if split == "train" else ("plain", self.images.plain)
            targets = targets_of(catalog.column("label")[chosen], self.labels)
            row_ids = catalog.column("row_id")[chosen]
            stored = [self.prepared.source(which, phase, chosen, targets, row_ids) for phase in self.phases]
            streamed: Source | None = None
            if None in stored:
                part = catalog.take(chosen)
                streams[split], count = self._stream(part, targets, train=split == "train")
                streamed = (StreamedDataset(split, count), 0)
            sources[split] = [found or streamed for found in stored]  # type: ignore[misc]
            if split in ("temperature", "thresholds") and not _has_rows(sources[split]):
                del sources[split]  # their images failed: nothing is promised then
            elif not _has_rows(sources[split]):
                codes = _stored_failures(self.prepared, which, chosen)
                raise CatalogError(f"{catalog.uri}: no {split} image could be read: {codes}; see `retailray check`")
        return sources, streams

    def _stream(self, part: Catalog, targets: np.ndarray, *, train: bool) -> tuple[Stream, int]:
        """Decoded rows with targets, padded to a multiple of the workers, and how many there are.

        They are kept decoded where there is room.
        """
        config, plan, executor = self.config, self.plan, self.executor
        crop = config.transform.image_size
        size = augmentation(config).source_px if train else crop
        if train:  # of paths, which is cheap and global; the workers shuffle pixels within a window besides
            order = np.random.default_rng(config.train.seed).permutation(len(part))
            part, targets = part.take(order), targets[order]
        table = transport_table(part).append_column(TARGET, pa.array(targets, pa.int32()))
        missing = -len(part) % plan.num_actors
        if missing:
            padding = table.slice(0, 1).set_column(table.column_names.index(CODE), CODE, pa.array([PADDING]))
            table = pa.concat_tables([table, *[padding] * missing])
        spec = DecodeSpec(Scaling(config.transform.resolved_resize_size, size), limits_of(config.catalog))
        blocks = executor.stream(blocks_of(table, int(4 * executor.capacity.num_cpus)), plan)
        stream = blocks.map(decode_rows, {"spec": spec, "access": access_of(config.catalog)}, rows=CHUNK_ROWS).select(
            [ROW_ID, TARGET, CODE, PIXELS]
        )
        fits = table.num_rows * spec.num_bytes < KEEP_DECODED * executor.capacity.object_store_bytes
        return (stream.kept() if fits else stream), table.num_rows


def _has_rows(sources: list[Source]) -> bool:
    return all(not isinstance(source, CachedDataset) or len(source.rows) for source, _ in sources)


def _stored_failures(prepared: Prepared, which: str, rows: np.ndarray) -> dict[str, int]:
    """Error codes of rows, where a store knows them."""
    if which not in prepared.codes:
        return {}
    counts = Counter(prepared.codes[which][rows].tolist())
    return {code: count for code, count in sorted(counts.items()) if code}
