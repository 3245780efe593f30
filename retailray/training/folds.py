"""k folds: every row is tested once by a model that was neither trained nor chosen on it.

What these models say of the labels of their rows is ``label_errors.parquet``.
"""

import io
import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.config import TrainConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import Catalog
from retailray.data.splits import hash_unit
from retailray.errors import CatalogError
from retailray.models.metrics import classification_metrics
from retailray.runs import RunDirectory
from retailray.training.fit import FitResult, Fitter

MEASURES = ("top1", "top5", "macro_f1", "ece")


def make_folds(config: TrainConfig, rows: Catalog, roles: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Row numbers of train, validation and test by fold: classes in equal shares, products in one fold.

    ``roles`` has the rows of the usual split. Where the catalog names its validation rows they choose the epoch in
    every fold, and the folds divide the training rows; else each holds back ``split.validation`` of its other products.

    Raises:
        CatalogError: there are too few rows for so many folds.
    """
    fixed = bool(config.catalog.validation_uri) or bool((rows.column("split") != "").any())
    pool = roles["train"] if fixed else np.arange(len(rows))
    labels, groups = rows.column("label"), rows.column("group")
    from sklearn.model_selection import StratifiedGroupKFold  # a second, which runs without folds save

    divider = StratifiedGroupKFold(config.split.folds or 0, shuffle=True, random_state=config.split.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes smaller than the number of folds are in some of them only
            # codes and not texts, which numpy would make all as long as the longest
            codes = [np.unique(names[pool], return_inverse=True)[1] for names in (labels, groups)]
            parts = [pool[test] for _, test in divider.split(pool, *codes)]
    except ValueError as error:
        raise CatalogError(f"split.folds = {config.split.folds}: {error}") from error
    folds = []
    for test in parts:
        rest = np.setdiff1d(pool, test)
        if fixed:
            folds.append({"train": rest, "validation": roles["validation"], "test": test})
            continue
        # by the same hash as the usual split, but so many of the products and never none
        products = sorted(set(groups[rest]), key=lambda product: hash_unit(config.split.seed, product))
        held_back = products[: max(1, round(config.split.validation * len(products)))]
        chosen = set(held_back)
        chooses = np.array([group in chosen for group in groups[rest]], bool)
        folds.append({"train": rest[~chooses], "validation": rest[chooses], "test": test})
    for number, fold in enumerate(folds, 1):
        empty = [name for name, members in fold.items() if not len(members)]
        if empty:
            raise CatalogError(
                f"split.folds = {config.split.folds}: fold {number} has no {' and no '.join(empty)} rows"
            )
    return folds


def run_folds(fitter: Fitter, run: RunDirectory, folds: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Fit and test every fold that an interrupted run has not; mean, standard deviation and values a measure."""
    results = []
    for number, rows in enumerate(folds, 1):
        name, table = f"folds/fold-{number}.json", f"folds/fold-{number}.parquet"
        if run.resumed and all(storage.exists(run.path(one)) for one in (table, name)):
            results.append(json.loads(storage.read_bytes(run.path(name))))
            continue
        tags = {"fold": number, "folds": len(folds)}
        fitted = fitter.fit(rows, run.path("checkpoints", f"fold-{number}"), tags)
        measured = _measure(fitted, fitter.labels) | {"fold": number, "best_epoch": fitted.best_epoch}
        run.write(table, parquet_bytes(_labels_of(fitted, fitter.labels)))
        run.write_json(name, measured)
        storage.remove_folder(run.path("checkpoints", f"fold-{number}"))
        events.emit("fold", **{key: measured[key] for key in ("fold", *MEASURES, "num_rows")})
        results.append(measured)
    _write_label_errors(run, fitter.images.plain, len(folds))
    summary: dict[str, object] = {"num_folds": len(folds)}
    for measure in MEASURES:
        values = [result[measure] for result in results]
        summary[measure] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "values": values}
    return summary


def _measure(fitted: FitResult, labels: list[str]) -> dict[str, object]:
    assert fitted.test is not None
    targets, classes, scores, *_ = fitted.test
    if not len(targets):
        raise CatalogError("split.folds: no image of a fold could be read; see `retailray check`")
    names = np.array(labels, dtype=object)
    top = [list(names[row]) for row in classes]
    return classification_metrics(names[targets], names[classes[:, 0]], scores[:, 0], top, bootstrap=0)


def _labels_of(fitted: FitResult, labels: list[str]) -> pa.Table:
    """Of each tested row its label, the most probable one, and the probabilities of both."""
    assert fitted.test is not None
    targets, classes, scores, own, row_ids = fitted.test
    names = np.array(labels, dtype=object)
    columns = {"row_id": row_ids, "label": names[targets], "suggested": names[classes[:, 0]]}
    return pa.table(columns | {"score": own, "suggested_score": scores[:, 0]})


def _write_label_errors(run: RunDirectory, rows: Catalog, num_folds: int) -> None:
    """All tested rows, the least probable labels first.

    ``suspicious`` is a label where another one is at least as probable as that one is for its own rows, on average
    (confident learning, Northcutt et al. 2021, arXiv 1911.00068).
    """
    names = [run.path(f"folds/fold-{number}.parquet") for number in range(1, num_folds + 1)]
    found = pd.concat([pd.read_parquet(io.BytesIO(storage.read_bytes(name))) for name in names])
    usual = found.groupby("label").score.mean()
    enough = found.suggested_score >= found.suggested.map(usual).fillna(np.inf)
    found["suspicious"] = (found.suggested != found.label) & enough
    told = rows.rows.select(["row_id", "id", "image"]).to_pandas()
    found = found.merge(told, on="row_id", validate="one_to_one").sort_values(["score", "id"])
    columns = ["id", "image", "label", "suggested", "score", "suggested_score", "suspicious"]
    run.write("label_errors.parquet", parquet_bytes(pa.Table.from_pandas(found[columns], preserve_index=False)))
