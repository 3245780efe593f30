"""One fit with Ray Train: images and their splits in, history and the best epoch's weights out."""

import dataclasses
import signal
import threading
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.torch
import torch

from retailray import storage
from retailray.cluster import Capacity, Plan, relay_progress
from retailray.config import ClusterSection, TrainConfig
from retailray.data.catalog import Catalog
from retailray.data.images import Limits
from retailray.data.pipeline import CODE, PADDING, PIXELS, DecodeSpec, image_dataset, transport_table
from retailray.data.row_ids import ROW_ID
from retailray.errors import CatalogError, RetailrayError
from retailray.models.calibration import Calibration
from retailray.training.entry import train_loop
from retailray.training.loop import FitConfig, read_state
from retailray.training.precompute import Backbone
from retailray.training.prepare import Images, Prepared, augmentation
from retailray.training.recipe import Stage, min_rows
from retailray.training.rows import class_weights, targets_of, with_roles
from retailray.training.sources import TARGET, StoredRows, StreamedRows

KEEP_DECODED = 0.2  # of the object store, for each split; above it images are decoded again in every epoch


@dataclasses.dataclass(frozen=True)
class FitResult:
    """``best``: the tensors that were trained, as of the best epoch. ``test_logits`` ``(N, C)`` if there is a test."""

    history: list[dict[str, Any]]
    best_epoch: int
    best: dict[str, torch.Tensor]
    calibration: Calibration
    errors_by_code: dict[str, int]
    test_logits: np.ndarray | None = None
    test_targets: np.ndarray | None = None


def fit(
    config: TrainConfig,
    images: Images,
    rows: dict[str, np.ndarray],
    labels: list[str],
    stages: list[Stage],
    backbone: Backbone,
    prepared: Prepared,
    plan: Plan,
    capacity: Capacity,
    checkpoints: str,
    tags: dict[str, Any],
) -> FitResult:
    """Fine-tune on rows of images: ``train`` of ``images.train``, ``validation`` (and ``test``) of ``images.plain``.

    A fit that finds checkpoints at ``checkpoints``, an address that all nodes can write, goes on from the last one.

    Raises:
        RetailrayError: a worker failed more often than ``train.max_failures``; the first line of its reason.
    """
    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True  # the order of rows is part of what a seed repeats
    rows = with_roles(rows, images.plain, labels, seed=config.split.seed)
    sources: dict[str, list[tuple[StoredRows | StreamedRows, int]]] = {}
    datasets: dict[str, ray.data.Dataset] = {}
    for split, chosen in rows.items():
        which, catalog = ("train", images.train) if split == "train" else ("plain", images.plain)
        targets = targets_of(catalog.column("label")[chosen], labels)
        row_ids = catalog.column("row_id")[chosen]
        stored = [prepared.source(which, stage, chosen, targets, row_ids) for stage in stages]
        streamed: tuple[StreamedRows, int] | None = None
        if None in stored:
            dataset, count = _dataset(config, catalog.take(chosen), targets, plan, capacity, train=split == "train")
            datasets[split], streamed = dataset, (StreamedRows(split, count), 0)
        sources[split] = [found or streamed for found in stored]  # type: ignore[misc]
        if split in ("temperature", "thresholds") and not _has_rows(sources[split]):
            del sources[split]  # their images failed: nothing is promised then
        elif not _has_rows(sources[split]):
            codes = _stored_failures(prepared, which, chosen)
            raise CatalogError(f"{catalog.uri}: no {split} image could be read: {codes}; see `retailray check`")
    failed = _stored_failures(prepared, "train", rows["train"])
    with relay_progress("epochs", sum(stage.epochs for stage in stages)) as relay:
        fit_config = FitConfig(
            backbone=backbone,
            stages=stages,
            train=config.train,
            augmentation=augmentation(config),
            class_weights=class_weights(images.train.column("label")[rows["train"]], labels)
            if config.train.balance
            else None,
            sources=sources,
            min_rows=min_rows(stages),
            threads=plan.torch_threads,
            relay=relay,
            tags=tags,
        )
        try:
            result = _run(_trainer(config, fit_config, datasets, options, plan, checkpoints))
        finally:
            options.preserve_order = False  # the context is the process's, and scoring has no use for the order
    found = result.return_value
    if not found["best_epoch"] and found["history"][0]["validation_rows"]:
        raise RetailrayError(
            "training diverged: no epoch has a finite validation loss; lower train.head_lr and train.backbone_lr "
            "(or those of train.phases)"
        )
    best = read_state(result.checkpoint)["best"]
    return FitResult(
        history=found["history"],
        best_epoch=found["best_epoch"],
        best=best,
        calibration=found["calibration"],
        errors_by_code=failed or found["codes"],
        test_logits=found.get("test_logits"),
        test_targets=found.get("test_targets"),
    )


def _trainer(
    config: TrainConfig, fit_config: FitConfig, datasets: dict[str, Any], options: Any, plan: Plan, checkpoints: str
) -> Any:
    storage_filesystem, storage_path = storage.arrow_filesystem(checkpoints)
    scaling = ray.train.ScalingConfig(
        num_workers=_num_workers(config.cluster, plan),
        use_gpu=plan.actor_gpus > 0,
        placement_strategy=config.cluster.placement.upper(),
        resources_per_worker={"CPU": plan.actor_cpus} | ({"GPU": plan.actor_gpus} if plan.actor_gpus else {}),
    )
    run_config = ray.train.RunConfig(
        name="fit",
        storage_path=storage_path,
        storage_filesystem=storage_filesystem,
        failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
    )
    return ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"config": ray.put(fit_config)},
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split="all", execution_options=options),
        scaling_config=scaling,
        run_config=run_config,
    )


def _num_workers(section: ClusterSection, plan: Plan) -> int | tuple[int, int]:
    """A range where training may go on with fewer workers."""
    low = section.min_workers
    return plan.num_actors if low is None or low == plan.num_actors else (low, plan.num_actors)


def _run(trainer: Any) -> Any:
    """``trainer.fit()`` with its failures in one line, and Ctrl-C as everywhere else."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit as error:  # how Ray Train's own handler ends an interrupted fit
        raise KeyboardInterrupt from error
    except ray.train.TrainingFailedError as error:
        raise RetailrayError(f"training failed: {_root_cause(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Ray Train leaves its own behind


def _dataset(
    config: TrainConfig, part: Catalog, targets: np.ndarray, plan: Plan, capacity: Capacity, *, train: bool
) -> tuple[ray.data.Dataset, int]:
    """Decoded rows with targets, padded to a multiple of the workers, and how many there are; kept decoded where the
    object store has room."""
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
    limits = Limits(config.catalog.max_pixels, config.catalog.max_aspect_ratio)
    spec = DecodeSpec(config.transform.resolved_resize_size, size, limits)
    dataset = image_dataset(
        table, spec, task_cpus=plan.task_cpus, num_blocks=int(4 * capacity.num_cpus)
    ).select_columns([ROW_ID, TARGET, CODE, PIXELS])
    fits = table.num_rows * spec.num_bytes < KEEP_DECODED * capacity.object_store_bytes
    return (dataset.materialize() if fits else dataset), table.num_rows


def _has_rows(sources: list[tuple[StoredRows | StreamedRows, int]]) -> bool:
    return all(not isinstance(source, StoredRows) or len(source.rows) for source, _ in sources)


def _stored_failures(prepared: Prepared, which: str, rows: np.ndarray) -> dict[str, int]:
    """Error codes of rows, where a store knows them."""
    if which not in prepared.codes:
        return {}
    counts = Counter(prepared.codes[which][rows].tolist())
    return {code: count for code, count in sorted(counts.items()) if code}


def _root_cause(error: BaseException) -> str:
    """The first line a person can use out of Ray Train's nested failures."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
