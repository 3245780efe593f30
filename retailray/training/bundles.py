"""From trained weights to a bundle in the run directory and in the registry."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from retailray import events, storage
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.data.fingerprints import fingerprints
from retailray.data.taxonomy import Taxonomy
from retailray.models.backbones import Backbone, plain_name
from retailray.models.bundle import BundleMeta, EvalTransform, copy_bundle, new_version, save_bundle
from retailray.models.calibration import Calibration, validation_table
from retailray.provenance import provenance
from retailray.runs import RunDirectory
from retailray.training.best_epoch import Epoch, measures_of
from retailray.training.numbers import TrueValues
from retailray.training.rows import rows_digest


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a fit or a search leaves: a whole state dict, and what is known of it.

    ``best``: the measures of the epoch that is kept. ``folds``: of k folds, or None. ``taxonomy``: of the
    labels, or None. ``known``: where labels are numbers, their true values.
    """

    config: TrainConfig
    labels: list[str]
    backbone: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Catalog]
    state: dict[str, torch.Tensor]
    calibration: Calibration
    best: Epoch
    folds: Mapping[str, Any] | None = None
    taxonomy: Taxonomy | None = None
    known: TrueValues | None = None

    @functools.cached_property
    def meta(self) -> BundleMeta:
        """What the bundle says of itself."""
        config, transform = self.config, self.config.transform
        best = self.best
        metrics: dict[str, object] = {"epoch": best["epoch"], **measures_of(best)}
        return BundleMeta(
            name=config.model.name or plain_name(self.backbone.arch),
            version=new_version(self.state),
            arch=self.backbone.arch,
            backbone=self.backbone.config,
            labels=self.labels,
            intervals=self.known.intervals if self.known else None,
            taxonomy=self.taxonomy.kept() if self.taxonomy else {},
            transform=EvalTransform(
                resize_size=transform.resolved_resize_size,
                crop_size=transform.image_size,
                mean=self.mean,
                std=self.std,
            ),
            temperature=self.calibration.temperature,
            metrics=metrics | ({"folds": self.folds} if self.folds else {}),
            data={
                "catalog": config.catalog.uri,
                "fingerprint": rows_digest(self.splits),
                "labels": count_labels(self.splits["train"].column("label")),
                **{f"num_{name}_rows": len(part) for name, part in self.splits.items()},
                "validation_rows_used_for": self.calibration.num_rows(),
                **({"taxonomy_from": self.taxonomy.source} if self.taxonomy else {}),
            },
            config=config.model_dump(mode="json"),
            **provenance(),
        )

    def save(self, run: RunDirectory) -> str:
        """Save the bundle of a run and return its address.

        Its ``validation.parquet`` says of every validation row that could be read what it was used for (``role``) and
        what came of it; its ``training_rows.parquet`` has fingerprints of the training rows.
        """
        bundle = run.path("bundle")
        if run.resumed:
            storage.remove_folder(bundle)  # of a run that ended between its bundle and its _SUCCESS
        train = self.splits["train"]
        used = (
            (train.column("uri") != "")
            & (train.column("denied_reason") == "")
            & (train.column("fault_code") == "")
            & ~train.column("repeated")
        )
        trained_on = pa.table({"image": fingerprints(train.column("uri")[used])})
        validation = validation_table(self.calibration, self.splits["validation"].rows, self.labels)
        save_bundle(bundle, self.meta, self.state, validation=validation, training_rows=trained_on)
        return bundle


def register(registry: str | None, bundle: str, meta: BundleMeta) -> dict[str, str]:
    """Copy a bundle to the registry, if there is one; return its address there as ``registered``."""
    if not registry:
        return {}
    registered = storage.join(storage.normalize(registry), meta.name, meta.version)
    copy_bundle(bundle, registered)
    events.emit("registered", bundle=registered)
    return {"registered": registered}
