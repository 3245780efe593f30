"""The driver's side of ``train``: read, plan, fit, and leave a bundle with its curves."""

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import torch

from retailray import events
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, concat_rows, count_labels
from retailray.errors import CatalogError
from retailray.execution import Executor, Plan, plan_training, start_executor
from retailray.models.blocks import to_blocks
from retailray.models.bundle import state_to_bytes
from retailray.models.weights import pretrained_model
from retailray.runs import RunDirectory
from retailray.tracking import check_tracking, track
from retailray.training.bundles import describe, leave_bundle, register
from retailray.training.cache.plan import CachePlan
from retailray.training.fit import Fitter
from retailray.training.folds import make_folds, run_folds
from retailray.training.network import Backbone
from retailray.training.phases import ResolvedPhase, check_batch_size, min_rows, resolve
from retailray.training.prepare import Images, measure_here, prepare
from retailray.training.report import write_training_report
from retailray.training.rows import labelled_splits, rows_digest

Model = tuple[torch.nn.Module, tuple[float, ...], tuple[float, ...]]


def train(config: TrainConfig) -> str:
    """Fine-tune on the labelled rows of a catalog and write a run directory with a bundle.

    Returns:
        The address of the bundle.

    Raises:
        RetailrayError: catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    check_tracking(config.track)
    splits = labelled_splits(config)
    labels = sorted(count_labels(splits["train"].column("label")))
    size, seed = config.transform.image_size, config.train.seed
    model = pretrained_model(config.model.arch, config.model.resolved_weights, len(labels), seed=seed, image_size=size)
    phases = resolve(config, to_blocks(model[0]))
    run = RunDirectory.resumed_or_new(config, section="train", resume=config.train.resume)
    events.emit(
        "start",
        command="train",
        run=run.address,
        resumed=run.resumed,
        labels=len(labels),
        arch=config.model.arch,
        phases=[f"{phase.epochs} x {phase.trainable}" for phase in phases],
        **{name: len(part) for name, part in splits.items()},
    )
    num_images = sum(len(part) for part in splits.values())
    with start_executor(config.cluster, num_images=num_images) as executor:
        plan = plan_training(
            executor.capacity, config.cluster, most=max(1, config.train.batch_size // min_rows(phases))
        )
        check_batch_size(
            phases,
            batch_size=config.train.batch_size,
            num_workers=plan.num_actors,
            num_rows=len(splits["train"]),
        )
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        fitter, rows = _prepare(config, run, splits, labels, model, phases, plan, executor)
        prepared_s = watch.seconds
        folds = run_folds(fitter, run, make_folds(config, fitter.images.plain, rows)) if config.split.folds else None
        result = fitter.fit(rows, run.path("checkpoints", "model"), {})
    if not result.history[0]["train_rows"] or not result.history[0]["validation_rows"]:
        raise CatalogError(
            f"{config.catalog.uri}: no training or no validation image could be read: {result.errors_by_code}; "
            "see `retailray check`"
        )
    best = result.history[result.best_epoch - 1]
    state = model[0].state_dict() | result.best
    meta = describe(config, labels, model[1:], best, splits, state, result.calibration, folds)
    bundle = leave_bundle(run, meta, state, result.calibration, splits)
    registered = register(config, bundle, meta)
    run.write("history.csv", pd.DataFrame(result.history).to_csv(index=False))
    write_training_report(run, meta, config, result.history, best, result.errors_by_code, folds)
    measures = {"best_epoch": best["epoch"], "validation_top1": best["validation_top1"]}
    summary = {
        "command": "train",
        "bundle": bundle,
        "model_name": meta.name,
        "model_version": meta.version,
        **measures,
        "temperature": result.calibration.temperature,
        "validation_rows_used_for": result.calibration.num_rows(),
        "folds": folds,
        "num_labels": len(labels),
        "rows": {name: len(part) for name, part in splits.items()},
        "errors_by_code": result.errors_by_code,
        "num_workers": plan.num_actors,
        "resumed": run.resumed,
        "times": {"preparing": prepared_s, "fitting": watch.seconds - prepared_s},
        "seconds": watch.seconds,
    }
    run.publish(summary, clear=["checkpoints"])
    track(config, run, summary, result.history, version=meta.version, metrics=best)
    seen, failed = sum(row["train_rows"] for row in result.history), sum(result.errors_by_code.values())
    tested = {"folds_top1": folds["top1"]["mean"], "folds_std": folds["top1"]["std"]} if folds else {}
    counts = {"epochs": len(result.history), "images": seen, "failed": failed}
    watch.summary("train", num_images=seen, **counts, **measures, **tested, bundle=bundle, **registered)
    return bundle


def _prepare(
    config: TrainConfig,
    run: RunDirectory,
    splits: dict[str, Catalog],
    labels: list[str],
    model: Model,
    phases: list[ResolvedPhase],
    plan: Plan,
    executor: Executor,
) -> tuple[Fitter, dict[str, np.ndarray]]:
    """What every fit of this run shares, and the rows of the fit whose model is kept."""
    network, mean, std = model
    num_train, num_validation = len(splits["train"]), len(splits["validation"])
    if config.split.folds:  # every row may be in any role
        everything = concat_rows([splits["train"], splits["validation"]])
        images = Images(everything, everything)
        rows = {"train": np.arange(num_train), "validation": np.arange(num_train, num_train + num_validation)}
    else:
        images = Images(splits["train"], splits["validation"])
        rows = {"train": np.arange(num_train), "validation": np.arange(num_validation)}
    weights = state_to_bytes(network.state_dict())
    inputs = {"the catalog's rows": rows_digest(splits), "model.weights": hashlib.sha256(weights).hexdigest()}
    earlier = run.decisions(section="train", inputs=inputs)
    precision = earlier.get("precision", config.train.precision)
    cuts = {phase.num_cached_blocks for phase in phases} if config.train.cache == "auto" else set()
    measured = measure_here(config, len(labels), cuts, plan, executor, precision=precision)
    backbone = Backbone(
        arch=config.model.arch,
        num_classes=len(labels),
        image_size=config.transform.image_size,
        state_ref=executor.put(weights),
        mean=mean,
        std=std,
        precision=measured.precision,
    )
    kept = CachePlan(**earlier["cache"]) if earlier else None
    prepared = prepare(config, images, phases, backbone, to_blocks(network), measured, plan, executor, earlier=kept)
    cache = dataclasses.asdict(prepared.plan)
    run.decide(inputs=inputs, precision=measured.precision, cache=cache)
    return Fitter(config, images, labels, phases, backbone, prepared, plan, executor), rows
