"""What labelled rows say of a classifier that was trained elsewhere: its temperature, and rows for thresholds."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from retailray import events
from retailray.config import BundleConfig
from retailray.data.catalog import Catalog, count_labels, read_catalog
from retailray.data.decoding import CODE
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.errors import CatalogError
from retailray.models.calibration import Calibration, calibrate, validation_table
from retailray.models.meta import EMBEDDING
from retailray.models.predicting import EMBEDDING_FIELD, LOGITS_FIELD
from retailray.models.predictions import predict_rows
from retailray.runs import RunDirectory
from retailray.training.rows import targets_of, validation_roles
from retailray.training.validation import CALIBRATION_ROWS, LOGITS_BYTES

BATCH_SIZE = 64


class Calibrated(NamedTuple):
    """A calibration, the ``validation.parquet`` of it, and measures of the rows."""

    calibration: Calibration
    validation: pa.Table
    metrics: dict[str, object]


def calibration_rows(config: BundleConfig, labels: list[str]) -> Catalog:
    """The labelled rows of ``catalog.*`` whose label the model has.

    Raises:
        CatalogError: there are none.
    """
    catalog = read_catalog(config.catalog, needs_label=True)
    names = catalog.column("label")
    known = targets_of(names, labels) >= 0
    unknown = count_labels(names[~known & (names != "")])
    if not known.any():
        raise CatalogError(
            f"{config.catalog.uri}: no row has a label of the model ({', '.join(labels[:5])}, ...); there are "
            f"{', '.join(list(unknown)[:5]) or 'none'}; bundle.label_map renames the model's labels to the catalog's"
        )
    if unknown:
        events.emit(
            "warning",
            labels_unknown_to_the_model=list(unknown)[:10],
            rows=sum(unknown.values()),
            note="their rows are left out; bundle.label_map renames the model's labels to the catalog's",
        )
    chosen = np.flatnonzero(known)
    most = min(CALIBRATION_ROWS, LOGITS_BYTES // (4 * len(labels)))
    if len(chosen) > most:  # evenly spread
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(int)]
        events.emit("warning", calibration_rows=most, of=int(known.sum()), note="more rows would say little more")
    return catalog.select(np.isin(np.arange(len(catalog)), chosen))


def calibrate_on(
    config: BundleConfig, catalog: Catalog, address: str, labels: list[str], run: RunDirectory
) -> Calibrated:
    """Predict the rows with the bundle at ``address``, and fit what can be fitted.

    Raises:
        CatalogError: no image could be read. RetailrayError: a task or an actor failed for good.
    """
    also = (LOGITS_FIELD, EMBEDDING_FIELD)
    found = predict_rows(config.catalog, config.cluster, catalog, address, run, batch_size=BATCH_SIZE, also=also)
    used = found.filter(pc.equal(found.column(CODE), ""))
    if failed := found.num_rows - used.num_rows:
        events.emit("warning", images_that_failed=failed, note="see `retailray check`")
    if not used.num_rows:
        raise CatalogError(f"{config.catalog.uri}: no image could be read; see `retailray check`")
    mine = catalog.rows.filter(pc.is_in(catalog.rows.column("row_id"), value_set=used.column(ROW_ID).combine_chunks()))
    rows = in_order_of(used.column(ROW_ID), mine, key="row_id")
    logits = torch.from_numpy(np.stack(used.column(LOGITS_FIELD.name).to_numpy()))
    targets = torch.from_numpy(targets_of(rows.column("label").to_numpy(), labels))
    calibration = calibrate(
        logits,
        targets,
        torch.from_numpy(np.stack(used.column(EMBEDDING).to_numpy())),
        torch.from_numpy(rows.column("row_id").to_numpy()),
        validation_roles(rows.column("group").to_numpy(), seed=0, chooses_epoch=False),
    )
    return Calibrated(calibration, validation_table(calibration, rows, labels), _measures(calibration, logits, targets))


def _measures(calibration: Calibration, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, object]:
    from sklearn.metrics import f1_score

    truth, predicted = calibration.targets, calibration.predicted
    return {
        "validation_top1": float((truth == predicted).mean()),
        "validation_macro_f1": float(f1_score(truth, predicted, labels=np.unique(truth), average="macro")),
        "validation_loss": float(torch.nn.functional.cross_entropy(logits, targets)),
        "validation_rows": len(truth),
    }
