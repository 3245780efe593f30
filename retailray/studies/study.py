"""``study``: several models, several seeds of each, on the same rows; which is better, with the evidence."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.config import CheckConfig, CheckSection, StudyConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import Catalog, count_labels
from retailray.data.decoding import COLUMN_PREFIX
from retailray.data.splits import read_splits
from retailray.data.spreadsheets import csv_text
from retailray.errors import CatalogError, RetailrayError
from retailray.execution import Executor, plan_scoring, start_executor
from retailray.models.predictions import predict_catalog
from retailray.quality.check import check
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory
from retailray.studies.fits import DivergedFit, Fit, check_models, choose_precisions, run_fits
from retailray.studies.report import write_study_report
from retailray.studies.statistics import Comparison, compare_models
from retailray.training.rows import rows_digest

PREDICT_BATCH = 64
PAIR_COLUMNS = ["first", "second", "difference", "low", "high", "p_value", "adjusted_p_value", "is_sure"]


def study(config: StudyConfig) -> str:
    """Train every model with every seed, measure all on the test rows, and write tables and a report.

    Returns:
        The address of the run directory: ``study.json``; ``fits``, ``epochs``, ``predictions`` and ``pairs`` as tables;
        ``report.html``; and a bundle for every fit.

    Raises:
        RetailrayError: catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    splits = read_splits(config.catalog, config.split)
    test = _test_rows(config, splits)
    checked = check_models(config, splits)
    run = RunDirectory.resumed_or_new(config, section="study", resume=config.study.resume)
    inputs = {
        "the catalog's rows": rows_digest(splits),
        **{f"the weights of {name}": one for name, one in checked.digests.items()},
    }
    earlier = run.decisions(section="study", inputs=inputs)
    rows = {name: len(part) for name, part in splits.items()}
    names = [model.name for model in config.study.models]
    told: dict[str, object] = {"resumed": run.resumed, "models": names, "seeds": config.study.seeds}
    events.emit("start", command="study", run=run.address, **told, **rows, rates=checked.rates)
    num_images = sum(rows.values()) * len(names) * config.study.seeds
    with start_executor(config.cluster, num_images=num_images) as executor:
        run.machines = executor.machines
        num_labels = len(count_labels(splits["train"].column("label")))
        precisions = earlier.get("precisions") or choose_precisions(config, executor, num_labels=num_labels)
        run.decide(inputs=inputs, precisions=precisions)
        _look_at_catalog(config, run)
        every = list(run_fits(config, run, executor, precisions))
        fits, diverged = _divided(every)
        predictions = predict_test_rows(config, fits, test, executor)
    right, groups = hits(predictions)
    usual = float(predictions.drop_duplicates("row_id").label.value_counts(normalize=True).iloc[0])
    compared = compare_models(right, groups, bootstrap=config.study.bootstrap, baseline=usual)
    _write_tables(run, _tables(every, predictions, compared))
    facts = _facts(compared, rows, diverged, num_tested=len(groups))
    run.write_json("study.json", facts)
    write_study_report(run, config, (fits, diverged), predictions, compared, splits["train"])
    publish(run, {"command": "study", **facts, "seconds": watch.seconds})
    seen = sum(row["train_rows"] for fit in fits for row in fit.history)
    told = {name: facts[name] for name in ("winner", "why", "best", "top1", "not_surely_worse")}
    watch.summary("study", num_images=seen, fits=len(fits), **told, report=run.path("report.html"))
    return run.address


def _divided(every: list[Fit | DivergedFit]) -> tuple[list[Fit], list[DivergedFit]]:
    """The fits of models that can be compared, and those that diverged: the mean over a model's other seeds would be
    better than the model is.

    Raises:
        RetailrayError: no model is left.
    """
    diverged = [fit for fit in every if isinstance(fit, DivergedFit)]
    names = {fit.model.name for fit in diverged}
    fits = [fit for fit in every if isinstance(fit, Fit) and fit.model.name not in names]
    if not fits:
        raise RetailrayError(f"study: every model diverged with a seed at least; of the first: {diverged[0].message}")
    return fits, diverged


def _look_at_catalog(config: StudyConfig, run: RunDirectory) -> None:
    """Before anything is trained on it; its report belongs to the study's."""
    if run.resumed and storage.exists(run.path("check", "LATEST")):
        return
    settings = CheckConfig(
        out=run.path("check"),
        catalog=config.catalog,
        split=config.split,
        check=CheckSection(samples=config.study.samples),
        cluster=config.cluster,
    )
    with events.nested_run():
        check(settings)


def _write_tables(run: RunDirectory, tables: dict[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        run.write(f"{name}.parquet", parquet_bytes(pa.Table.from_pandas(table, preserve_index=False)))
        if name in ("fits", "pairs"):
            run.write(f"{name}.csv", csv_text(table))


def _test_rows(config: StudyConfig, splits: dict[str, Catalog]) -> Catalog:
    """The test rows whose label the models will know.

    Raises:
        CatalogError: there are none.
    """
    known = list(count_labels(splits["train"].column("label"))) if "train" in splits else []
    if not {"train", "validation"} <= set(splits):
        raise CatalogError(f"{config.catalog.uri}: there are no training or no validation rows; see split.validation")
    test = splits.get("test")
    test = test.select(np.isin(test.column("label"), known)) if test else None
    if not test or not len(test):
        raise CatalogError(
            f"{config.catalog.uri}: a study needs test rows with labels of the training rows, and there are none; hold "
            "rows back with split.test, or name their table with catalog.test_uri"
        )
    return test


def predict_test_rows(config: StudyConfig, fits: list[Fit], test: Catalog, executor: Executor) -> pd.DataFrame:
    """What every fit says of every test row that could be read.

    Returns:
        Columns ``model, seed, row_id, id, group, uri, label, pred_label, pred_score``; the same rows for all fits.
    """
    plan = plan_scoring(executor.capacity, config.cluster, num_images=len(test), batch_size=PREDICT_BATCH)
    executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
    truth = test.rows.select(["row_id", "id", "group", "uri", "label"]).to_pandas()
    parts = []
    for fit in fits:
        table = predict_catalog(config.catalog, test, fit.bundle, plan, executor, batch_size=PREDICT_BATCH)
        frame = table.to_pandas().rename(columns=lambda column: column.removeprefix(COLUMN_PREFIX))
        said = frame.loc[frame.error_code == "", ["row_id", "pred_label", "pred_score"]]
        parts.append(truth.merge(said, on="row_id", validate="one_to_one").assign(model=fit.model.name, seed=fit.seed))
    predictions = pd.concat(parts, ignore_index=True)
    everywhere = predictions.groupby("row_id").label.transform("size") == len(fits)
    if not everywhere.any():
        raise CatalogError(f"{config.catalog.uri}: no test image could be predicted by all models; see `check`")
    return predictions[everywhere].reset_index(drop=True)


def hits(predictions: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By model, whether each seed is right on each row, bool ``(S, N)``; and the rows' products, object ``(N,)``."""
    ordered = predictions.sort_values(["seed", "row_id"], kind="stable")
    right = {}
    for name, part in ordered.groupby("model", sort=False):
        right[str(name)] = (part.label == part.pred_label).to_numpy().reshape(part.seed.nunique(), -1)
    first = ordered[(ordered.model == ordered.model.iloc[0]) & (ordered.seed == ordered.seed.iloc[0])]
    return right, first.group.to_numpy(object)


def _tables(every: list[Fit | DivergedFit], predictions: pd.DataFrame, compared: Comparison) -> dict[str, pd.DataFrame]:
    right = (predictions.label == predictions.pred_label).groupby([predictions.model, predictions.seed]).mean()
    rows = [fit.facts() | {"test_top1": right.get((fit.model.name, fit.seed), math.nan)} for fit in every]
    ended = [fit for fit in every if isinstance(fit, Fit)]
    epochs = [{"model": fit.model.name, "seed": fit.seed, **row} for fit in ended for row in fit.history]
    pairs = [dataclasses.asdict(pair) | {"is_sure": pair.is_sure} for pair in compared.pairs]
    for pair in pairs:
        pair["low"], pair["high"] = pair.pop("interval")
    return {
        "fits": pd.DataFrame(rows),
        "epochs": pd.DataFrame(epochs),
        "predictions": predictions,
        "pairs": pd.DataFrame(pairs, columns=PAIR_COLUMNS),
    }


def _facts(
    compared: Comparison, rows: dict[str, int], diverged: list[DivergedFit], *, num_tested: int
) -> dict[str, object]:
    best, accuracy = next(iter(compared.accuracies.items()))
    return {
        "best": best,
        "top1": accuracy.top1,
        "winner": compared.winner,
        "why": compared.why,
        "most_frequent_label": compared.baseline,
        "not_surely_worse": compared.rivals,
        "models": {name: dataclasses.asdict(one) for name, one in compared.accuracies.items()},
        "diverged": [{"model": fit.model.name, "seed": fit.seed, "message": fit.message} for fit in diverged],
        "rows": rows,
        "test_rows_used": num_tested,
    }
