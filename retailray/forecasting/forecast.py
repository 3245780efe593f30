"""``forecast``: how much of every product will be sold in the next periods."""

import contextlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.config.command_configs import ForecastConfig
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.product_table import read_products
from retailray.data.sales import Sales, read_sales
from retailray.errors import RetailrayError
from retailray.execution import plan_scoring, start_executor
from retailray.forecasting.backtest import (
    coverage,
    errors_of,
    fit_intervals,
    measures,
    origins_of,
    usual_change,
)
from retailray.forecasting.boosted import MIN_HISTORY
from retailray.forecasting.launches import Likeness, launch_forecast, launches_of, measure_launches
from retailray.forecasting.report import write_forecast_report
from retailray.forecasting.series import Series, first_forecast, make_series, next_starts, period_start
from retailray.forecasting.tasks import forecast_tasks, gathered_forecasts, tasks, wanted_models
from retailray.interrupts import applications
from retailray.reports.run_index import publish
from retailray.retrieval.vectors import of_products, read_vectors
from retailray.runs import RunDirectory

FORECASTS = "forecasts"
ROWS_PER_FILE = 1_000_000
UNMEASURED = "mean"  # where nothing could be measured


def forecast(config: ForecastConfig) -> str:
    """Write ``forecasts/``, ``errors/`` and ``report.html``; returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there, or there are too few periods. ConfigError. RetailrayError.
    """
    watch = events.Stopwatch()
    for package in ("statsforecast", "lightgbm"):
        applications(package)
    sales = read_sales(config.sales, config.interactions)
    section = config.forecast
    end = first_forecast(sales, section.frequency, section.as_of)
    names = sales.products.texts()
    series, counts = make_series(sales, section.frequency, end, _categories(config, names))
    run = RunDirectory(config)
    as_of = str(period_start(np.array([end]), section.frequency)[0])
    events.emit("start", command="forecast", run=run.address, as_of=as_of, products=len(names), **counts)
    likeness, names = _likeness(config, names, series)
    series = _with_unsold(series, len(names), likeness)
    forecasts = _forecasts(config, series, run)
    chosen, measured = _choose(series, forecasts, section.method)
    errors = errors_of(series, _backtests(series, forecasts), chosen)
    facts: dict[str, Any] = {
        "as_of": as_of,
        "frequency": section.frequency,
        "products": len(names),
        "first_period": str(series.starts[0]),
        "method": chosen,
        "measured": measured,
        "measured_from": [str(series.starts[origin]) for origin in sorted(_backtests(series, forecasts))],
        "coverage": coverage(errors, section.level, section.horizon),
        "launches": measure_launches(series, likeness, section.horizon),
        "sales": {**sales.bad.counts, **counts},
    }
    table = _table(config, sales, series, names, likeness, forecasts[series.num_periods], chosen, errors)
    facts["methods"] = {one["values"].as_py(): one["counts"].as_py() for one in table.column("method").value_counts()}
    for number, part in enumerate(rechunk([table], ROWS_PER_FILE)):
        storage.write_bytes(run.path(FORECASTS, f"part-{number:05d}.parquet"), parquet_bytes(part))
    run.write("errors/part-00000.parquet", parquet_bytes(sales.bad.table()))
    write_forecast_report(run, config, facts, series, table, names)
    publish(run, {"command": "forecast", **facts, "seconds": watch.seconds})
    shown = {name: facts[name] for name in ("products", "method", "coverage")}
    watch.summary("forecast", num_images=len(names), **shown, run=run.address)
    return run.address


def _categories(config: ForecastConfig, names: list[str]) -> np.ndarray:
    """The number of each product's category, int64 ``(P,)``; all 0 without ``products.category``."""
    if not (config.products.uri and config.products.category):
        return np.zeros(len(names), np.int64)
    texts = read_products(config.products).column(config.products.category, names, "products.category")
    return np.unique(texts.astype(str), return_inverse=True)[1].astype(np.int64)


def _likeness(config: ForecastConfig, names: list[str], series: Series) -> tuple[Likeness, list[str]]:
    """What new products are compared by, and the names with those added that only have an embedding.

    Raises:
        CatalogError: no product of the sales has an embedding.
    """
    told = bool(config.products.uri and config.products.category)
    if not config.embeddings.uri:
        return Likeness(None, series.category if told else np.full(len(names), -1)), names
    together, found = of_products(read_vectors(config.embeddings.uri, "auto"), names, "sales")
    category = _categories(config, together) if told else np.full(len(together), -1)
    return Likeness(found, category), together


def _with_unsold(series: Series, num: int, likeness: Likeness) -> Series:
    """The series, and empty ones of products that were never sold."""
    more = num - len(series.values)
    if not more:
        return series
    empty = np.full((more, series.num_periods), np.nan)
    first = np.full(more, series.num_periods)
    category = likeness.category if (likeness.category >= 0).all() else np.zeros(num, np.int64)
    columns = (np.concatenate([one, empty]) for one in (series.values, series.price, series.promotion))
    values, price, promotion = columns
    first = np.concatenate([series.first, first])
    return Series(series.frequency, series.starts, values, first, price, promotion, category)


def _forecasts(config: ForecastConfig, series: Series, run: RunDirectory) -> dict[int, dict[str, np.ndarray]]:
    """By origin (the last is the forecast that is asked for) and method, float64 ``(P, horizon)``."""
    horizon = config.forecast.horizon
    origins = [series.num_periods, *origins_of(series.num_periods, horizon)]
    fitted, with_boosted = wanted_models(config.forecast.method)
    parts = tasks(series, origins, with_boosted=with_boosted)
    with start_executor(config.cluster, num_images=len(parts)) as executor:
        run.machines = executor.machines
        on_cpus = config.cluster.model_copy(update={"use_gpu": False})
        plan = plan_scoring(executor.capacity, on_cpus, num_images=len(parts), batch_size=1)
        with executor.reporter("forecasts", len(parts)) as reporter:
            arguments = {
                "series": executor.put(series),
                "horizon": horizon,
                "fitted": fitted,
                "seed": config.forecast.seed,
                "reporter": reporter,
            }
            try:
                found = list(executor.stream(parts, plan).map(forecast_tasks, arguments, rows=1).tables())
            except Exception as error:
                raise RetailrayError(
                    f"forecast stopped: {executor.root_cause(error)} (every machine needs retailray[applications])"
                ) from error
    return gathered_forecasts(found, len(series.values), horizon)


def _backtests(series: Series, forecasts: dict[int, dict[str, np.ndarray]]) -> dict[int, dict[str, np.ndarray]]:
    return {origin: one for origin, one in forecasts.items() if origin < series.num_periods}


def _choose(
    series: Series, forecasts: dict[int, dict[str, np.ndarray]], wanted: str
) -> tuple[str, dict[str, dict[str, Any]]]:
    """The method of the smallest WAPE over all earlier origins, and the measures of all."""
    earlier = _backtests(series, forecasts)
    names = list(next(iter(forecasts.values())))
    found: dict[str, dict[str, Any]] = {}
    for name in names if earlier else []:
        errors = errors_of(series, earlier, name)
        if len(errors.truth):
            found[name] = measures(series, errors)
            events.emit("method", method=name, wape=found[name]["wape"], mase=found[name]["mase"])
    known = [name for name in found if found[name]["wape"] is not None]
    if wanted != "auto":
        return wanted, found
    if not known:
        events.emit("warning", note=f"too few periods to compare methods; {UNMEASURED} is used")
        return UNMEASURED, found
    best = min(known, key=lambda name: found[name]["wape"])
    return best, found


def _table(  # many because a row has something of all of these
    config: ForecastConfig,
    sales: Sales,
    series: Series,
    names: list[str],
    likeness: Likeness,
    forecasts: dict[str, np.ndarray],
    chosen: str,
    errors: Any,
) -> pa.Table:
    """A row for each product and period: product, ``date, horizon, forecast, low, high, method``."""
    horizon, level = config.forecast.horizon, config.forecast.level
    values, methods = forecasts[chosen].copy(), np.full(len(names), chosen, object)
    mean = forecasts[UNMEASURED]
    unknown = np.isnan(values).any(1)
    values[unknown], methods[unknown] = mean[unknown], UNMEASURED
    _launch(series, likeness, values, methods)
    step = np.tile(np.arange(horizon), len(names))
    flat = values.ravel()
    intervals = fit_intervals(errors, level, horizon)
    usual = np.repeat(usual_change(series, series.num_periods), horizon)
    low, high = intervals.around(flat, step, usual) if intervals else (np.full(len(flat), np.nan),) * 2
    kind = sales.products.array().type
    products = pa.array(np.repeat(np.array(names, object), horizon), pa.string())
    with contextlib.suppress(pa.ArrowInvalid):  # products that only have embeddings may be no integers
        products = products.cast(kind)
    dates = pd.to_datetime(np.tile(next_starts(series, horizon), len(names))).date
    return pa.table(
        {
            sales.column: products,
            "date": pa.array(dates, pa.date32()),
            "horizon": (step + 1).astype(np.int32),
            "forecast": flat,
            "low": pa.array(low, from_pandas=True),
            "high": pa.array(high, from_pandas=True),
            "method": np.repeat(methods, horizon).tolist(),
        }
    )


def _launch(series: Series, likeness: Likeness, values: np.ndarray, methods: np.ndarray) -> None:
    """Products with less than :data:`MIN_HISTORY` periods: by the launches of others, where there are some."""
    horizon = values.shape[1]
    ages = series.num_periods - series.first
    launches = launches_of(series, series.num_periods, MIN_HISTORY + horizon)
    for product in np.flatnonzero(ages < MIN_HISTORY).tolist():
        age = int(ages[product])
        others = launches.product != product
        mine = type(launches)(launches.product[others], launches.curves[others])
        if len(mine.product):
            weights, name = likeness.weights(product, mine.product)
            own = series.values[product, series.first[product] :]
            found = launch_forecast(mine, weights, age, horizon, own)
            if found is not None:
                values[product], methods[product] = found, name
        if np.isnan(values[product]).any():
            values[product], methods[product] = 0.0, "unknown"
