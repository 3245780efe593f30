"""``check.label_errors``: every label of a catalog, the most suspicious first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events, storage
from retailray.config import CheckConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import Catalog, corrections_of
from retailray.data.decoding import CODE
from retailray.data.row_ids import ROW_ID
from retailray.errors import CatalogError
from retailray.models.meta import load_meta
from retailray.quality.findings import near_content, same_content
from retailray.reports.review_page import write_review_page
from retailray.runs import RunDirectory

TABLE, DRAFT = "label_errors.parquet", "features-model"  # in the run directory; the second is removed
MIN_ROWS = 20
BATCH_SIZE = 64
MOST_CELLS = 400_000_000  # images times labels, of which several tables of float32 are held
REVIEWED = 300  # rows of the review page
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("label", pa.string()),
        ("suggested", pa.string()),  # the label itself where no other is more probable
        ("score", pa.float32()),  # probability of the label; null where no other product has it
        ("suggested_score", pa.float32()),
        ("suspicious", pa.bool_()),
        ("confirmed", pa.bool_()),  # a person gave the label, by catalog.corrections
        ("split", pa.string()),
    ]
)


def features_model(config: CheckConfig, run: RunDirectory) -> str:
    """The address of the bundle whose features are used; of a backbone one is written into the run directory.

    Before any image is read, so that what is wrong with the model is told at once.

    Raises:
        ModelError: no such model or weights, or it has no transform. StorageError: an address cannot be read.
    """
    from retailray.models.feature_bundle import save_backbone

    if config.check.model:
        load_meta(config.check.model)
        return config.check.model
    assert config.model.arch, "the config asks for one"
    draft = run.path(DRAFT)
    save_backbone(draft, config.model.arch, config.model.weights)
    return draft


def find_label_errors(
    config: CheckConfig, catalog: Catalog, scan: pd.DataFrame, model_uri: str, run: RunDirectory
) -> pd.DataFrame:
    """Rank the labelled rows whose image can be read; write ``label_errors.parquet`` and ``review/``.

    Args:
        scan: one row per catalog row, as ``images.parquet`` has them, with ``row_id``. model_uri: a bundle.

    Returns:
        The rows of the table, with ``uri``, ``row_id`` and ``sha256``.

    Raises:
        CatalogError: there are too few labelled rows. ModelError: no such model. RetailrayError.
    """
    from retailray.quality.suspicion import linked, suspicion

    labelled = scan[(scan.error_code == "") & (scan.label != "")]
    num_labels = labelled.label.nunique()
    if len(labelled) < MIN_ROWS or num_labels < 2 or num_labels == len(labelled):
        raise CatalogError(
            f"{config.catalog.uri}: check.label_errors needs {MIN_ROWS} labelled images of two labels, one with two "
            f"images at the least; there are {len(labelled)} of {num_labels} labels"
        )
    rows = catalog.select(np.isin(catalog.column("row_id"), labelled.row_id))
    kept, features = _features(config, rows, model_uri, run)
    labelled = labelled.set_index("row_id").loc[kept].reset_index()
    names, labels = np.unique(labelled.label.to_numpy(object), return_inverse=True)
    hashes = labelled.phash.to_numpy(np.uint64)
    together = same_content(labelled.sha256.tolist())
    together += near_content(hashes, np.arange(len(labelled)), max_distance=config.check.near_distance)
    groups = linked(len(labelled), labelled.group.to_numpy(object), together)
    num_groups = len(np.unique(groups))
    events.emit("label_errors", rows=len(labelled), labels=len(names), groups=num_groups)
    _refuse_what_cannot_be_done(config, len(labelled), len(names), num_groups)
    found = suspicion(features, labels, groups, num_classes=len(names))
    confirmed = _confirmed(config, labelled)
    ranked = labelled.assign(
        suggested=names[found.suggested],
        score=found.score,
        suggested_score=found.suggested_score,
        suspicious=found.suspicious & ~confirmed,
        confirmed=confirmed,
    ).sort_values(["score", "id"], na_position="last", ignore_index=True)
    table = pa.Table.from_pandas(ranked[_SCHEMA.names], schema=_SCHEMA, preserve_index=False)
    run.write(TABLE, parquet_bytes(table))
    _write_review(config, ranked, names.tolist(), run)
    return ranked


def _refuse_what_cannot_be_done(config: CheckConfig, num_rows: int, num_labels: int, num_groups: int) -> None:
    if num_groups < 2 or num_labels < 2:
        raise CatalogError(
            f"{config.catalog.uri}: check.label_errors: all {num_rows} images are of one label, of one product, or "
            "nearly the same picture; see catalog.label, catalog.group and check.near_distance"
        )
    if num_rows * num_labels > MOST_CELLS:
        raise CatalogError(
            f"{config.catalog.uri}: check.label_errors of {num_rows} images with {num_labels} labels needs too much "
            f"memory: at most {MOST_CELLS // num_labels} images with so many labels; check a part"
        )


def _confirmed(config: CheckConfig, rows: pd.DataFrame) -> np.ndarray:
    """Whether a person has given the label, of the picture as it is now: bool ``(N,)``."""
    said = corrections_of(config.catalog)
    if said is None:
        return np.zeros(len(rows), bool)
    sums = dict(zip(said.column("item_id").to_pylist(), said.column("sha256").to_pylist(), strict=True))
    pairs = zip(rows.id, rows.sha256, strict=True)
    return np.array([name in sums and sums[name] in ("", digest) for name, digest in pairs], bool)


def _features(
    config: CheckConfig, catalog: Catalog, model_uri: str, run: RunDirectory
) -> tuple[np.ndarray, np.ndarray]:
    """Row ids (M,) and features, float16 ``(M, D)``, of the images that the model could look at."""
    from retailray.models.predicting import FEATURES_FIELD
    from retailray.models.predictions import predict_rows
    from retailray.models.probabilities import unpacked

    found = predict_rows(
        config.catalog,
        config.cluster,
        catalog,
        model_uri,
        run,
        batch_size=BATCH_SIZE,
        also=(FEATURES_FIELD,),
        mirrored=True,
    )
    if model_uri == run.path(DRAFT):
        storage.remove_folder(model_uri)
    good = found.filter(pc.equal(found.column(CODE), ""))
    if not good.num_rows:
        raise CatalogError(f"{config.catalog.uri}: check.label_errors: the model could look at no image")
    return good.column(ROW_ID).to_numpy(), unpacked(good.column(FEATURES_FIELD.name))


def _write_review(config: CheckConfig, ranked: pd.DataFrame, labels: Sequence[str], run: RunDirectory) -> None:
    """Write ``review/index.html`` of the suspicious rows; what it saves is for ``catalog.corrections``."""
    rows: list[dict[str, Any]] = [
        {
            "item_id": row.id,
            "image": row.uri,
            "sha256": row.sha256,
            "pred_label": row.suggested,
            "pred_score": row.suggested_score,
            "topk_labels": [row.suggested, row.label],
            "topk_scores": [row.suggested_score, row.score],
            "catalog_label": row.label,
            "label_before": None,
            "reasons": ["label_error"],
        }
        for row in ranked[ranked.suspicious].head(REVIEWED).itertuples()
    ]
    write_review_page(run, rows, labels, config.check.model or str(config.model.arch), config.catalog)
