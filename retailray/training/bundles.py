"""From trained weights to a bundle in the run directory and in the registry."""

import pyarrow as pa
import pyarrow.compute as pc
import torch

from retailray import events, storage
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.data.fingerprints import fingerprints
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
    best: dict[str, object],
    splits: dict[str, Catalog],
    state: dict[str, torch.Tensor],
    calibration: Calibration,
    folds: dict[str, object] | None,
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
        temperature=calibration.temperature,
        metrics=metrics | ({"folds": folds} if folds else {}),
        data={
            "catalog": config.catalog.uri,
            "fingerprint": rows_digest(splits),
            "labels": count_labels(splits["train"].column("label")),
            **{f"num_{name}_rows": len(part) for name, part in splits.items()},
            "validation_rows_used_for": calibration.num_rows(),
        },
        config=config.model_dump(mode="json"),
        **provenance(),
    )


def leave_bundle(
    run: RunDirectory,
    meta: BundleMeta,
    state: dict[str, torch.Tensor],
    calibration: Calibration,
    splits: dict[str, Catalog],
) -> str:
    """Save the bundle of a run and return its address.

    Its ``validation.parquet`` says of every validation row that could be read what it was used for (``role``) and what
    came of it; its ``training_rows.parquet`` has fingerprints of the training rows.
    """
    bundle = run.path("bundle")
    if run.resumed:
        storage.remove_folder(bundle)  # of a run that ended between its bundle and its _SUCCESS
    labels = pa.array(meta.labels)
    rows = splits["validation"].rows
    rows = rows.take(pc.index_in(pa.array(calibration.row_ids), value_set=rows.column("row_id").combine_chunks()))
    validation = pa.table(
        {
            "id": rows.column("id"),
            "group": rows.column("group"),
            "role": pa.array(calibration.roles.tolist(), pa.string()),
            "label": labels.take(pa.array(calibration.targets)),
            "pred_label": labels.take(pa.array(calibration.predicted)),
            "pred_score": calibration.scores,
            EMBEDDING: pa.array(list(calibration.embeddings), pa.list_(pa.float32())),
        }
    )
    train = splits["train"]
    used = (train.column("uri") != "") & (train.column("denied_reason") == "") & ~train.column("repeated")
    trained_on = pa.table({"image": fingerprints(train.column("uri")[used])})
    save_bundle(bundle, meta, state, validation=validation, training_rows=trained_on)
    return bundle


def register(config: TrainConfig, bundle: str, meta: BundleMeta) -> dict[str, str]:
    """Copy a bundle to the registry if ``model.registry`` is set; return its address there as ``registered``."""
    if not config.model.registry:
        return {}
    registered = storage.join(storage.normalize(config.model.registry), meta.name, meta.version)
    copy_bundle(bundle, registered)
    events.emit("registered", bundle=registered)
    return {"registered": registered}
