"""One fit with Ray Train: decoded datasets in, history and the best epoch's weights out."""

import signal
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.torch
import safetensors.torch
import torch

from retailray import storage
from retailray.cluster import Capacity, Plan, relay_progress
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog
from retailray.data.images import Limits
from retailray.data.pipeline import CODE, PADDING, PIXELS, DecodeSpec, image_dataset, transport_table
from retailray.errors import RetailrayError
from retailray.models.bundle import WEIGHTS_NAME, state_to_bytes
from retailray.training.loop import TARGET, LoopConfig, train_loop

KEEP_DECODED = 0.2  # of the object store, for each split; above it images are decoded again in every epoch


def fit(
    config: TrainConfig,
    splits: dict[str, Catalog],
    labels: list[str],
    state: dict[str, torch.Tensor],
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    plan: Plan,
    capacity: Capacity,
    checkpoints: str,
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Fine-tune from the weights in ``state``; ``checkpoints`` is an address that all nodes can write, emptied again.

    Returns:
        The metrics of every epoch, and the weights of the one with the best validation accuracy.

    Raises:
        RetailrayError: a worker failed; the first line of its reason.
    """
    crop = config.transform.image_size
    source = crop if config.transform.augment == "none" else config.transform.resolved_resize_size
    # the order of rows is part of what a seed repeats
    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True
    datasets = {
        "train": _dataset(config, splits["train"], labels, source, plan, capacity, shuffle=True),
        "validation": _dataset(config, splits["validation"], labels, crop, plan, capacity, shuffle=False),
    }
    storage_filesystem, storage_path = storage.arrow_filesystem(checkpoints)
    scaling = ray.train.ScalingConfig(
        num_workers=plan.num_actors,
        use_gpu=plan.actor_gpus > 0,
        resources_per_worker={"CPU": plan.actor_cpus} | ({"GPU": plan.actor_gpus} if plan.actor_gpus else {}),
    )
    run_config = ray.train.RunConfig(
        name="fit",
        storage_path=storage_path,
        storage_filesystem=storage_filesystem,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
    )
    with relay_progress("epochs", config.train.epochs) as relay:
        loop_config = LoopConfig(
            arch=config.model.arch,
            num_classes=len(labels),
            state_ref=ray.put(state_to_bytes(state)),
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
        trainer = ray.train.torch.TorchTrainer(
            train_loop,
            train_loop_config={"config": loop_config},
            datasets=datasets,
            dataset_config=ray.train.DataConfig(datasets_to_split="all", execution_options=options),
            scaling_config=scaling,
            run_config=run_config,
        )
        result = _run(trainer)
    options.preserve_order = False  # the context is the process's, and scoring has no use for the order
    with result.checkpoint.as_directory() as folder:
        best = safetensors.torch.load_file(f"{folder}/{WEIGHTS_NAME}")
    storage.remove_folder(checkpoints)  # the bundle has what they were for
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
    return dataset.materialize() if needed < KEEP_DECODED * capacity.object_store_bytes else dataset


def _root_cause(error: BaseException) -> str:
    """The first line a person can use out of Ray Train's nested failures."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
