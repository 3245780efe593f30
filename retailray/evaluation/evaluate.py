"""``evaluate``: a bundle on a labelled catalog, with intervals, calibration and pictures of what it confuses."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse

from retailray import events
from retailray.config import EvaluateConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import Catalog, count_labels
from retailray.data.decoding import COLUMN_PREFIX, error_rows
from retailray.data.splits import rows_of_split
from retailray.data.spreadsheets import csv_text
from retailray.data.taxonomy import Taxonomy
from retailray.errors import CatalogError, ConfigError
from retailray.evaluation.levels import level_metrics
from retailray.evaluation.numbers import evaluate_numbers
from retailray.evaluation.products import FIELDS, product_metrics
from retailray.evaluation.report import write_evaluation_report
from retailray.evaluation.trained_rows import Side, side_of, warn_of_trained_rows
from retailray.models.backing_off import taxonomy_of_model
from retailray.models.meta import BundleMeta
from retailray.models.metrics import calibration_error, classification_metrics, confused_pairs, confusion
from retailray.models.predicting import UNCALIBRATED
from retailray.models.predictions import predict_rows
from retailray.models.products import choose_for
from retailray.models.registry import resolve_alias
from retailray.models.thresholds import validation_of
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory

MATRIX_LABELS = 1000  # of confusion.csv as a matrix
NUM_PAIRS = 8


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Predict every labelled row and compare; write ``metrics.json``, ``confusion.csv``, ``errors/``, ``report.html``.

    Of a bundle that predicts numbers: :func:`retailray.evaluation.numbers.evaluate_numbers`.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RetailrayError: see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    config = resolve_alias(config)
    side = side_of(config.model.uri)
    meta = side.meta
    catalog = rows_of_split(config.catalog, config.split, config.evaluate.split, key="evaluate.split")
    _warn(config, catalog, side)
    if meta.intervals is not None:
        return evaluate_numbers(config, side, catalog, watch)
    if "level" in config.evaluate.non_default_fields():
        raise ConfigError([f"evaluate.level: {config.model.uri} predicts labels, and this setting is of numbers"])
    unknown = _unknown_labels(catalog, meta)
    taxonomy = taxonomy_of_model(config.taxonomy.uri, meta)  # its faults are told before any image is read
    run = RunDirectory(config)
    events.emit("start", command="evaluate", run=run.address, rows=len(catalog), model=f"{meta.name}/{meta.version}")
    good, errors = _predicted(config, catalog, run)
    used = good[good.label.isin(set(meta.labels))].reset_index(drop=True)
    _refuse_nothing(config, used, errors, unknown, meta)
    metrics = _measure(used, bootstrap=config.evaluate.bootstrap) | {
        "ece_uncalibrated": calibration_error(*_calibration(used, "uncalibrated_score")),
        "temperature": meta.temperature,
        "num_failed": errors.num_rows,
        "errors_by_code": dict(Counter(errors.column("error_code").to_pylist())),
        "num_unlabelled": int((catalog.column("label") == "").sum()),
        "unknown_labels": unknown,
        "labels_without_rows": sorted(set(meta.labels) - set(used.label)),
        "model_name": meta.name,
        "model_version": meta.version,
        "catalog": config.catalog.uri,
        **_by_product_and_level(config, meta, good, used, taxonomy),
    }
    _write(run, config, meta, used, errors, metrics)
    summary = {"command": "evaluate", "model_uri": config.model.uri, "seconds": watch.seconds, **metrics}
    publish(run, {name: value for name, value in summary.items() if name not in ("per_class", "products", "taxonomy")})
    told = {"rows": len(catalog), "evaluated": len(used), "failed": errors.num_rows}
    told |= {"top1": metrics["top1"], "macro_f1": metrics["macro_f1"], "report": run.path("report.html")}
    watch.summary("evaluate", num_images=len(used), **told)
    return metrics


def _refuse_nothing(
    config: EvaluateConfig, used: pd.DataFrame, errors: pa.Table, unknown: dict[str, int], meta: BundleMeta
) -> None:
    if used.empty:
        raise CatalogError(
            f"{config.catalog.uri}: no row could be evaluated: {len(errors)} failed, "
            f"{sum(unknown.values())} have labels that the model does not know "
            f"(it knows {', '.join(meta.labels[:5])}, ...)"
        )


def _by_product_and_level(
    config: EvaluateConfig, meta: BundleMeta, good: pd.DataFrame, used: pd.DataFrame, taxonomy: Taxonomy | None
) -> dict[str, object]:
    """Measures by product and by level of the taxonomy, where there are such; ``good``: all that were predicted."""
    found: dict[str, object] = {}
    if taxonomy is not None:
        found["taxonomy"] = level_metrics(used.label.to_numpy(object), used.pred_label.to_numpy(object), taxonomy)
    if FIELDS[0].name in good:
        choice = choose_for(validation_of(config.model.uri), meta.labels)
        found["products"] = product_metrics(good, meta.labels, choice, bootstrap=config.evaluate.bootstrap)
    return found


def _predicted(config: EvaluateConfig, catalog: Catalog, run: RunDirectory) -> tuple[pd.DataFrame, pa.Table]:
    """The rows that could be predicted, and those that failed."""
    also = (UNCALIBRATED, *(FIELDS if catalog.has_products else ()))
    predicted = predict_rows(
        config.catalog,
        config.cluster,
        catalog,
        config.model.uri,
        run,
        batch_size=config.evaluate.batch_size,
        also=also,
    )
    frame = predicted.to_pandas().rename(columns=lambda name: name.removeprefix(COLUMN_PREFIX))
    frame = frame.merge(catalog.rows.select(["row_id", "group"]).to_pandas(), on="row_id", validate="one_to_one")
    return frame[frame.error_code == ""].reset_index(drop=True), error_rows(predicted)


def _warn(config: EvaluateConfig, catalog: Catalog, side: Side) -> None:
    """Say what measures of these rows would not show."""
    _warn_of_another_split(config, side.meta)
    warn_of_trained_rows(catalog, {"model": side})


def _unknown_labels(catalog: Catalog, meta: BundleMeta) -> dict[str, int]:
    """Rows by label that the model does not know; a warning names some."""
    known = set(meta.labels)
    unknown = {label: count for label, count in count_labels(catalog.column("label")).items() if label not in known}
    if unknown:
        events.emit(
            "warning",
            labels_unknown_to_the_model=list(unknown)[:10],
            rows=sum(unknown.values()),
            note="these rows are reported and excluded from the metrics; rename labels with catalog.label_map",
        )
    return unknown


def _warn_of_another_split(config: EvaluateConfig, meta: BundleMeta) -> None:
    """Emit a warning where the catalog is the one of training, and is divided in another way."""
    if config.evaluate.split in ("all", "train") or not meta.config:
        return
    split = {name: value for name, value in meta.config["split"].items() if name != "folds"}
    ours = config.catalog.uri, config.catalog.group, config.split.model_dump(exclude={"folds"})
    theirs = meta.config["catalog"]["uri"], meta.config["catalog"]["group"], split
    if ours[0] == theirs[0] and ours != theirs:
        events.emit(
            "warning",
            split=ours[2],
            trained_with=theirs[2],
            note="the split settings differ from those of training, so training rows may be among these",
        )


def _measure(used: pd.DataFrame, *, bootstrap: int) -> dict[str, object]:
    top = [list(names) for names in used.topk_labels]
    truth, predicted = used.label.to_numpy(object), used.pred_label.to_numpy(object)
    groups = used.group.to_numpy(object)
    score = used.pred_score.to_numpy(float)
    return classification_metrics(truth, predicted, score, top, bootstrap=bootstrap, groups=groups)


def _calibration(used: pd.DataFrame, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and whether it was right (0 or 1), both float (N,)."""
    return used[score].to_numpy(float), (used.label == used.pred_label).to_numpy(float)


def _confusion_csv(matrix: scipy.sparse.csr_array, labels: list[str]) -> str:
    """One row per true label and a column a predicted one; of more labels than a table shows, a row for each pair."""
    if len(labels) <= MATRIX_LABELS:
        table = pd.DataFrame(matrix.toarray(), index=pd.Index(labels, name="truth"), columns=labels)
        return csv_text(table, index=True)
    cells = matrix.tocoo()
    names = np.array(labels, dtype=object)
    pairs = {"truth": names[cells.row], "predicted": names[cells.col], "rows": cells.data}
    return csv_text(pd.DataFrame(pairs))


def _write(
    run: RunDirectory,
    config: EvaluateConfig,
    meta: BundleMeta,
    used: pd.DataFrame,
    errors: pa.Table,
    metrics: dict[str, object],
) -> None:
    truth, predicted = used.label.to_numpy(object), used.pred_label.to_numpy(object)
    matrix, labels = confusion(truth, predicted)
    run.write_json("metrics.json", metrics)
    run.write("confusion.csv", _confusion_csv(matrix, labels))
    run.write("errors/part-0.parquet", parquet_bytes(errors))
    pairs = confused_pairs(truth, predicted, limit=NUM_PAIRS)
    write_evaluation_report(run, config, meta, used, metrics, (matrix, labels), pairs)
