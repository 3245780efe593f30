"""The driver's side of ``train``: read, plan, fit, and leave a bundle with its curves."""

import hashlib
from typing import Any

import pandas as pd
import torch

from retailray import progress, storage
from retailray.cluster import plan_training, ray_session, wait_until_free
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.data.splits import read_splits
from retailray.errors import CatalogError
from retailray.models.bundle import BundleMeta, EvalTransform, copy_bundle, new_version, provenance, save_bundle
from retailray.models.weights import pretrained_model
from retailray.reports import write_training_report
from retailray.runs import RunDirectory
from retailray.training.fit import fit


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
        checkpoints = run.path("checkpoints")
        history, state = fit(config, splits, labels, model.state_dict(), (mean, std), plan, capacity, checkpoints)
    failed = history[0].get("errors_by_code", {})
    if not history[0]["train_rows"] or not history[0]["validation_rows"]:
        raise CatalogError(
            f"{config.catalog.uri}: no training or no validation image could be read: {failed}; see `retailray check`"
        )
    best = max(history, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    meta = _describe(config, labels, mean, std, best, splits, state)
    bundle = run.path("bundle")
    save_bundle(bundle, meta, state)
    if config.model.registry:
        registered = storage.join(storage.normalize(config.model.registry), meta.name, meta.version)
        copy_bundle(bundle, registered)
        progress.emit("registered", bundle=registered)
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
    if not known & set(splits["validation"].column("label")):
        raise CatalogError(f"{config.catalog.uri}: no label of the validation rows occurs in training: {strange[:5]}")
    if strange:
        progress.emit("warning", labels_only_in_validation=strange[:10], note="their rows are left out of its metrics")
    return {name: splits[name] for name in ("train", "validation")}


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
