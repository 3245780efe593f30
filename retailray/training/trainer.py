"""The driver's side of ``train``: read, plan, fit, and leave a bundle with its curves."""

import hashlib
import signal
import threading
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch

from retailray import progress, storage
from retailray.cluster import Capacity, Plan, plan_training, ray_session, relay_progress, wait_until_free
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.data.images import Limits
from retailray.data.pipeline import CODE, PADDING, PIXELS, DecodeSpec, image_dataset, transport_table
from retailray.data.splits import read_splits
from retailray.errors import CatalogError, RetailrayError
from retailray.models.bundle import (
    WEIGHTS_NAME,
    BundleMeta,
    EvalTransform,
    copy_bundle,
    new_version,
    provenance,
    save_bundle,
)
from retailray.models.weights import pretrained_model
from retailray.reports import write_training_report
from retailray.runs import RunDirectory
from retailray.training.loop import TARGET, LoopConfig, train_loop

KEEP_DECODED = 0.4  # of the object store; above it images are decoded again in every epoch


def train(config: TrainConfig) -> str:
    """Fine-tune on the labelled rows of a catalog and write a run directory with a bundle.

    Returns:
        The address of the bundle.

    Raises:
        RetailrayError: catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = progress.Stopwatch()
    splits = _labelled_splits(config)
    labels = sorted(count_labels(splits["train"].column("label")))
    model, mean, std = pretrained_model(config.model.arch, config.model.weights, len(labels), seed=config.train.seed)
    run = RunDirectory(config)
    progress.emit(
        "start",
        verb="train",
        run=run.address,
        labels=len(labels),
        arch=config.model.arch,
        **{name: len(part) for name, part in splits.items()},
    )
    with ray_session(config.cluster) as capacity:
        plan = plan_training(capacity, config.cluster)
        wait_until_free(plan)
        with relay_progress("epochs", config.train.epochs) as relay:
            history, state = _fit(config, splits, labels, model.state_dict(), (mean, std), plan, capacity, run, relay)
    best = max(history, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    meta = _describe(config, labels, mean, std, best, splits, state)
    bundle = run.path("bundle")
    save_bundle(bundle, meta, state)
    if config.model.registry:
        registered = storage.join(storage.normalize(config.model.registry), meta.name, meta.version)
        copy_bundle(bundle, registered)
        progress.emit("registered", bundle=registered)
    failed = history[0].get("errors_by_code", {})
    run.write("history.csv", pd.DataFrame(history).drop(columns="errors_by_code").to_csv(index=False))
    write_training_report(run, config, history, best, count_labels(splits["train"].column("label")), failed)
    seen = sum(row["train_rows"] for row in history)
    summary = {
        "verb": "train",
        "bundle": bundle,
        "model_name": meta.name,
        "model_version": meta.version,
        "best_epoch": best["epoch"],
        "validation_top1": best["validation_top1"],
        "num_labels": len(labels),
        "rows": {name: len(part) for name, part in splits.items()},
        "errors_by_code": failed,
        "num_workers": plan.num_actors,
        "seconds": watch.seconds,
    }
    run.publish(summary)
    watch.summary(
        "train",
        num_images=seen,
        epochs=len(history),
        images=seen,
        failed=sum(failed.values()),
        validation_top1=best["validation_top1"],
        best_epoch=best["epoch"],
        bundle=bundle,
    )
    return bundle


def _labelled_splits(config: TrainConfig) -> dict[str, Catalog]:
    """Rows with a label, by split. Raises CatalogError where there is nothing to train or choose on."""
    splits = read_splits(config.catalog, config.split)
    for name, part in splits.items():
        labelled = part.column("label") != ""
        if not labelled.all():
            progress.emit("warning", split=name, unlabelled_rows_left_out=int((~labelled).sum()))
        splits[name] = part.select(labelled)
    for name, advice in (
        ("train", "catalog.label names the column"),
        ("validation", "raise split.validation, or give catalog.validation_uri or catalog.split"),
    ):
        if name not in splits or not len(splits[name]):
            raise CatalogError(f"{config.catalog.uri}: no labelled {name} rows; {advice}")
    known = set(splits["train"].column("label"))
    if len(known) < 2:
        raise CatalogError(f"{config.catalog.uri}: the training rows have one label only ({known}); two are needed")
    strange = sorted(set(splits["validation"].column("label")) - known)
    if strange:
        progress.emit("warning", labels_only_in_validation=strange[:10], note="their rows are left out of its metrics")
    return {name: splits[name] for name in ("train", "validation")}


def _fit(
    config: TrainConfig,
    splits: dict[str, Catalog],
    labels: list[str],
    state: dict[str, torch.Tensor],
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    plan: Plan,
    capacity: Capacity,
    run: RunDirectory,
    relay: Any,
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Run Ray Train; return the history of epochs and the weights of the best one."""
    crop = config.transform.image_size
    source = crop if config.transform.augment == "none" else config.transform.resolved_resize_size
    # the order of rows is part of what a seed repeats
    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True
    datasets = {
        "train": _dataset(config, splits["train"], labels, source, plan, capacity, shuffle=True),
        "validation": _dataset(config, splits["validation"], labels, crop, plan, capacity, shuffle=False),
    }
    loop_config = LoopConfig(
        arch=config.model.arch,
        num_classes=len(labels),
        state_ref=ray.put(safetensors.torch.save({name: value.contiguous().clone() for name, value in state.items()})),
        mean=normalization[0],
        std=normalization[1],
        trainable=config.model.trainable,
        train_rows=-(-len(splits["train"]) // plan.num_actors),
        augment=config.transform.augment,
        source_px=source,
        crop_px=crop,
        threads=plan.torch_threads,
        relay=relay,
        **config.train.model_dump(),
    )
    storage_filesystem, storage_path = storage.arrow_filesystem(run.path("checkpoints"))
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"config": loop_config},
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split="all", execution_options=options),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_actors,
            use_gpu=plan.actor_gpus > 0,
            resources_per_worker={"CPU": plan.actor_cpus} | ({"GPU": plan.actor_gpus} if plan.actor_gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name="fit",
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    result = _run(trainer)
    with result.checkpoint.as_directory() as folder:
        best = safetensors.torch.load_file(f"{folder}/{WEIGHTS_NAME}")
    storage.remove_folder(run.path("checkpoints"))  # the bundle has what they were for
    return result.return_value, best


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
    config: TrainConfig,
    part: Catalog,
    labels: list[str],
    size: int,
    plan: Plan,
    capacity: Capacity,
    *,
    shuffle: bool,
) -> ray.data.Dataset:
    """Decoded rows with targets, padded to a multiple of the workers; kept decoded where the object store has room."""
    if shuffle:  # of paths, which is cheap and global; the workers shuffle pixels within a window besides
        part = part.take(np.random.default_rng(config.train.seed).permutation(len(part)))
    index = {label: number for number, label in enumerate(labels)}
    table = transport_table(part, with_input=False)
    targets = [index.get(label, -1) for label in part.column("label")]
    table = table.append_column(TARGET, pa.array(targets, pa.int32()))
    missing = -len(part) % plan.num_actors
    if missing:
        padding = table.slice(0, 1).set_column(table.column_names.index(CODE), CODE, pa.array([PADDING]))
        table = pa.concat_tables([table, *[padding] * missing])
    limits = Limits(config.catalog.max_pixels, config.catalog.max_aspect_ratio)
    resize = config.transform.resolved_resize_size
    spec = DecodeSpec(resize, size, limits)
    dataset = image_dataset(
        table, spec, task_cpus=plan.task_cpus, num_blocks=int(4 * capacity.num_cpus)
    ).select_columns([TARGET, CODE, PIXELS])
    needed = table.num_rows * spec.num_bytes
    return dataset.materialize() if needed < KEEP_DECODED / 2 * capacity.object_store_bytes else dataset


def _describe(
    config: TrainConfig,
    labels: list[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    best: dict[str, Any],
    splits: dict[str, Catalog],
    state: dict[str, torch.Tensor],
) -> BundleMeta:
    rows = splits["train"].rows
    digest = hashlib.sha256()
    for name in ("id", "uri", "label"):
        digest.update("\0".join(rows.column(name).to_pylist()).encode())
    return BundleMeta(
        name=config.model.name or config.model.arch,
        version=new_version(state),
        arch=config.model.arch,
        labels=labels,
        transform=EvalTransform(
            resize_size=config.transform.resolved_resize_size,
            crop_size=config.transform.image_size,
            mean=mean,
            std=std,
        ),
        metrics={name: best[name] for name in ("epoch", "validation_top1", "validation_loss")},
        data={
            "catalog": config.catalog.uri,
            "fingerprint": digest.hexdigest(),
            **{f"num_{name}_rows": len(part) for name, part in splits.items()},
        },
        config=config.model_dump(mode="json"),
        **provenance(),
    )


def _root_cause(error: BaseException) -> str:
    """The first line a person can use out of Ray Train's nested failures."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
