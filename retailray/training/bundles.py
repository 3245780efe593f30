"""From trained weights to a bundle in the run directory and in the registry."""

from typing import Any

import pyarrow as pa
import torch

from retailray import progress, storage
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.models.bundle import BundleMeta, EvalTransform, copy_bundle, new_version, save_bundle
from retailray.models.calibration import Calibration
from retailray.models.meta import EMBEDDING
from retailray.provenance import provenance
from retailray.runs import RunDirectory
from retailray.training.rows import rows_digest


def describe(
    config: TrainConfig,
    labels: list[str],
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    best: dict[str, Any],
    splits: dict[str, Catalog],
    state: dict[str, torch.Tensor],
    temperature: float,
    folds: dict[str, Any] | None,
) -> BundleMeta:
    """What a bundle says of itself. ``best``: the measures of the epoch that is kept."""
    mean, std = normalization
    metrics = {name: best[name] for name in ("epoch", "validation_top1", "validation_macro_f1", "validation_loss")}
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
        temperature=temperature,
        metrics=metrics | ({"folds": folds} if folds else {}),
        data={
            "catalog": config.catalog.uri,
            "fingerprint": rows_digest(splits),
            "labels": count_labels(splits["train"].column("label")),
            **{f"num_{name}_rows": len(part) for name, part in splits.items()},
        },
        config=config.model_dump(mode="json"),
        **provenance(),
    )


def leave_bundle(run: RunDirectory, meta: BundleMeta, state: dict[str, torch.Tensor], calibration: Calibration) -> str:
    """Save the bundle of a run; its address."""
    bundle = run.path("bundle")
    if run.resumed:
        storage.remove_folder(bundle)  # of a run that ended between its bundle and its _SUCCESS
    labels = pa.array(meta.labels)
    validation = pa.table(
        {
            "label": labels.take(pa.array(calibration.targets)),
            "pred_label": labels.take(pa.array(calibration.predicted)),
            "pred_score": calibration.scores,
            EMBEDDING: pa.array(list(calibration.embeddings), pa.list_(pa.float32())),
        }
    )
    save_bundle(bundle, meta, state, validation=validation)
    return bundle


def register(config: TrainConfig, bundle: str, meta: BundleMeta) -> None:
    """Copy a bundle to the registry where that is asked."""
    if config.model.registry:
        registered = storage.join(storage.normalize(config.model.registry), meta.name, meta.version)
        copy_bundle(bundle, registered)
        progress.emit("registered", bundle=registered)
