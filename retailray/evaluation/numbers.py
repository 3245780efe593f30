"""``evaluate`` of a bundle that predicts numbers: errors, coverage of the intervals, and pictures of the worst."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.config import CatalogSection, EvaluateConfig
from retailray.data.arrow_tables import parquet_bytes, run_starts
from retailray.data.catalog import Catalog
from retailray.data.decoding import CODE, error_rows
from retailray.data.numeric_labels import VALUE, spelled, with_values
from retailray.data.row_ids import ROW_ID
from retailray.errors import CatalogError, ConfigError
from retailray.evaluation.trained_rows import Side
from retailray.models.number_metrics import number_metrics
from retailray.models.numbers import DISTRIBUTION, NUMBER_SCHEMA, NumberRule
from retailray.models.predictions import predict_rows
from retailray.reports import plots
from retailray.reports.page import error_summary, picture_facts, render, thumbnails
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory

WORST = 24  # rows with pictures


def evaluate_numbers(config: EvaluateConfig, side: Side, catalog: Catalog, watch: events.Stopwatch) -> dict[str, Any]:
    """Predict every row with a number as label and compare; write ``metrics.json``, ``predictions.parquet``,
    ``errors/`` and ``report.html``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RetailrayError: see :mod:`retailray.errors`.
    """
    meta = side.meta
    if config.taxonomy.uri:
        raise ConfigError([f"taxonomy.uri: {config.model.uri} predicts numbers, which have no taxonomy; leave it out"])
    rows = with_values(catalog)
    if not len(rows):
        raise CatalogError(f"{config.catalog.uri}: no label is a number; catalog.label names the column")
    rule = NumberRule.of(side.uri, meta, level=config.evaluate.level)
    run = RunDirectory(config)
    events.emit("start", command="evaluate", run=run.address, rows=len(rows), model=f"{meta.name}/{meta.version}")
    good, errors = _predicted(config, rows, rule, run)
    if good.empty:
        raise CatalogError(f"{config.catalog.uri}: no row could be evaluated: {errors.num_rows} failed")
    metrics = number_metrics(good, bootstrap=config.evaluate.bootstrap)
    if rows.has_products:
        metrics["products"] = _of_products(config, side, good)
    metrics |= {
        "level": rule.level,
        "fitted_on": rule.num_products,
        "target": meta.target,
        "num_failed": errors.num_rows,
        "errors_by_code": dict(Counter(errors.column("error_code").to_pylist())),
        "num_without_a_number": len(catalog) - len(rows),
        "model_name": meta.name,
        "model_version": meta.version,
        "catalog": config.catalog.uri,
    }
    _write(run, config, good, errors, metrics)
    summary = {"command": "evaluate", "model_uri": config.model.uri, "seconds": watch.seconds, **metrics}
    publish(run, {name: value for name, value in summary.items() if name not in ("by_value", "products")})
    told = {"rows": len(catalog), "evaluated": len(good), "failed": errors.num_rows}
    told |= {"without_a_number": len(catalog) - len(rows)}
    told |= {"mae": metrics["mae"], "wape": metrics["wape"], "coverage": metrics["coverage"]}
    watch.summary("evaluate", num_images=len(good), **told, report=run.path("report.html"))
    return metrics


def _predicted(
    config: EvaluateConfig, rows: Catalog, rule: NumberRule, run: RunDirectory
) -> tuple[pd.DataFrame, pa.Table]:
    """``id, image, uri, group, value`` and the prediction of each row, and the rows that failed."""
    found = predict_rows(
        config.catalog,
        config.cluster,
        rows,
        config.model.uri,
        run,
        batch_size=config.evaluate.batch_size,
        also=DISTRIBUTION,
    )
    good = found.filter(pa.compute.equal(found.column(CODE), ""))
    numbers = rule(good)
    for field in DISTRIBUTION:
        numbers = numbers.append_column(field, good.column(field.name))
    numbers = numbers.append_column("row_id", good.column(ROW_ID)).to_pandas()
    told = rows.rows.select(["row_id", "id", "image", "uri", "group", VALUE]).to_pandas()
    return told.merge(numbers, on="row_id", validate="one_to_one"), error_rows(found)


def _of_products(config: EvaluateConfig, side: Side, good: pd.DataFrame) -> dict[str, object]:
    """The same measures of products, each with one prediction from its images; its value is their median."""
    rule = NumberRule.of(side.uri, side.meta, level=config.evaluate.level, by_product=True)
    rows = good.sort_values("group", kind="stable")
    starts = run_starts(pa.array(rows.group))
    table = pa.table({field.name: pa.array(rows[field.name].tolist(), field.type) for field in DISTRIBUTION})
    products = rule.of_products(table, starts).to_pandas()
    products["value"] = rows.groupby("group").value.median().to_numpy()
    products["group"] = rows.group.to_numpy()[starts]
    return number_metrics(products, bootstrap=config.evaluate.bootstrap) | {"fitted_on": rule.num_products}


def _write(
    run: RunDirectory, config: EvaluateConfig, good: pd.DataFrame, errors: pa.Table, metrics: dict[str, Any]
) -> None:
    run.write_json("metrics.json", metrics)
    columns = ["id", "image", VALUE, *NUMBER_SCHEMA.names]
    run.write("predictions.parquet", parquet_bytes(pa.Table.from_pandas(good[columns], preserve_index=False)))
    run.write("errors/part-0.parquet", parquet_bytes(errors))
    page = render(
        "evaluation_numbers.html.j2",
        title=f"Evaluation of {metrics['model_name']}",
        subtitle=f"{config.catalog.uri} · {config.model.uri}",
        run_id=run.run_id,
        metrics=metrics,
        answers=_answers(metrics),
        scatter=plots.predicted_numbers(good.value.to_numpy(), good.pred_value.to_numpy(), metrics["target"]),
        worst=_worst(good, config.catalog),
        errors=error_summary(metrics["errors_by_code"], {}),
    )
    run.write("report.html", page)


def _answers(metrics: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Is it good, and what is there to do: whether each is good, and in a sentence."""
    mae, usual, intervals = metrics["mae"], metrics["median_mae"], metrics["intervals"]
    low, high = intervals["mae"] if intervals else (mae, mae)
    told = f" ({spelled(low)} to {spelled(high)})" if intervals else ""
    first = f"Predictions are {spelled(mae)} off on average{told}, on {metrics['num_rows']:,} images."
    median = f"Always saying the median of these values is {spelled(usual)} off"
    if high < usual:
        answers = [(True, f"{first} {median}.")]
    elif mae < usual:
        answers = [(False, f"{first} {median}: on so few products that may be chance.")]
    else:
        answers = [(False, f"{first} {median}, which is no worse.")]
    if metrics["num_without_a_number"]:
        left = f"{metrics['num_without_a_number']:,} rows have no number as label and are left out."
        answers.append((False, left))
    answers.append(_of_interval(metrics))
    if metrics["num_failed"]:
        answers.append((False, f"{metrics['num_failed']:,} rows have no prediction: see Errors for the reasons."))
    return answers


def _of_interval(metrics: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the intervals hold what they are made for; that they hold more is no fault where values are few."""
    level, coverage = metrics["level"], metrics["coverage"]
    low, high = metrics["intervals"]["coverage"] if metrics["intervals"] else (coverage, coverage)
    told = f"{coverage:.1%} of the values lie in their interval, which is made for {level} %"
    if 100 * high >= level:
        more = ": it is wider than it need be" if metrics["intervals"] and 100 * low > level else ""
        return True, f"{told}{more}."
    if not metrics["fitted_on"]:
        return False, f"{told}: the bundle has too few validation products to fit it on."
    return False, f"{told}: these rows differ from the validation rows that it was fitted on."


def _worst(good: pd.DataFrame, section: CatalogSection) -> list[dict[str, object]]:
    """The rows that are furthest off, with pictures."""
    furthest = np.argsort(-(good.pred_value - good.value).abs().to_numpy(), kind="stable")[:WORST]
    rows = good.iloc[furthest]
    return [
        {
            "picture": picture,
            "caption": f"{spelled(row.value)}, predicted {spelled(row.pred_value)} · {row.id}",
            "facts": picture_facts(
                id=row.id,
                value=row.value,
                predicted=row.pred_value,
                interval=f"{spelled(row.pred_low)} to {spelled(row.pred_high)}",
                address=row.uri,
            ),
        }
        for picture, row in zip(thumbnails(rows.uri.tolist(), section), rows.itertuples(), strict=True)
    ]
