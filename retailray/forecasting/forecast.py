"""``forecast``: how much of every product will be sold in the next periods."""

from typing import Any

import numpy as np
import pyarrow as pa

from retailray import events, storage
from retailray.config.command_configs import ForecastConfig
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.bad_rows import matches
from retailray.data.product_table import categories_of
from retailray.data.sales import Sales, read_sales
from retailray.errors import RetailrayError
from retailray.execution import plan_scoring, start_executor
from retailray.forecasting.backtest import (
    coverage,
    errors_of,
    measures,
    origins_of,
)
from retailray.forecasting.expected import UNMEASURED, expected, expected_table, launch
from retailray.forecasting.launches import (
    Likeness,
    launch_facts,
    launches_of,
    measure_launches,
)
from retailray.forecasting.report import write_forecast_report
from retailray.forecasting.series import (
    Series,
    known_sales,
    make_series,
    period_start,
)
from retailray.forecasting.tasks import forecast_tasks, gathered_forecasts, tasks, wanted_models
from retailray.interrupts import applications
from retailray.reports.run_index import publish
from retailray.retrieval.vectors import of_products, read_vectors
from retailray.runs import RunDirectory

FORECASTS = "forecasts"
ROWS_PER_FILE = 1_000_000


def forecast(config: ForecastConfig) -> str:  # long because each step needs what those before it found
    """Write ``forecasts/``, ``errors/`` and ``report.html``; returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there, or there are too few periods. ConfigError. RetailrayError.
    """
    watch = events.Stopwatch()
    for package in ("statsforecast", "lightgbm"):
        applications(package)
    sales = read_sales(config.sales, config.interactions)
    section = config.forecast
    sales, end = known_sales(sales, section.frequency, section.as_of)
    as_of = str(period_start(np.array([end]), section.frequency)[0])
    likeness, names = _likeness(config, sales)
    series, counts = make_series(sales, section.frequency, end, likeness.category[: len(sales.names)])
    run = RunDirectory(config)
    events.emit("start", command="forecast", run=run.address, as_of=as_of, products=len(sales.names), **counts)
    series = _with_unsold(series, likeness.category)
    run.write("errors/part-00000.parquet", parquet_bytes(sales.bad.table()))
    forecasts = _forecasts(config, series, run)
    chosen, measured = _choose(series, forecasts, section.method)
    errors = errors_of(series, _backtests(series, forecasts), chosen)
    launches = launches_of(series, section.horizon)
    launch_errors = measure_launches(series, launches, likeness, section.horizon, seed=section.seed)
    facts: dict[str, Any] = {
        "as_of": as_of,
        "frequency": section.frequency,
        "products": len(names),
        "never_sold": len(names) - len(sales.names),
        "first_period": str(series.starts[0]),
        "method": chosen,
        "measured": measured,
        "measured_from": [str(series.starts[origin]) for origin in sorted(_backtests(series, forecasts))],
        "coverage": coverage(errors, section.level, section.horizon),
        "launches": launch_facts(launch_errors),
        "sales": {**sales.bad.counts, **counts},
    }
    published = expected(series, forecasts[series.num_periods], chosen, errors, section)
    launch(published, series, launches, launch_errors, likeness, section.level)
    _write(run, config, facts, series, expected_table(sales, series, names, published), names)
    publish(run, {"command": "forecast", **facts, "seconds": watch.seconds})
    shown = {name: facts[name] for name in ("products", "method", "coverage")}
    watch.summary("forecast", num_images=len(names), **shown, run=run.address)
    return run.address


def _write(  # many because a page shows all that was found
    run: RunDirectory,
    config: ForecastConfig,
    facts: dict[str, Any],
    series: Series,
    table: pa.Table,
    names: list[str],
) -> None:
    facts["methods"] = {one["values"].as_py(): one["counts"].as_py() for one in table.column("method").value_counts()}
    for number, part in enumerate(rechunk([table], ROWS_PER_FILE)):
        storage.write_bytes(run.path(FORECASTS, f"part-{number:05d}.parquet"), parquet_bytes(part))
    write_forecast_report(run, config, facts, series, table, names)


def _likeness(config: ForecastConfig, sales: Sales) -> tuple[Likeness, list[str]]:
    """What new products are compared by, and the names with those added that only have an embedding.

    Raises:
        CatalogError: no product of the sales has an embedding.
    """
    if not config.embeddings.uri:
        return Likeness(None, categories_of(config.products, sales.names).of), sales.names
    together, found = of_products(read_vectors(config.embeddings.uri, "auto"), sales.names, "sales")
    keep = [at for at, name in enumerate(together) if at < len(sales.names) or not matches(name, sales.exclude)]
    names = [together[at] for at in keep]
    return Likeness(found[keep], categories_of(config.products, names).of), names


def _with_unsold(series: Series, category: np.ndarray) -> Series:
    """The series, and empty ones of products that were never sold. ``category``: of all of them."""
    more = len(category) - len(series.values)
    if not more:
        return series
    empty = np.full((more, series.num_periods), np.nan)
    columns = (np.concatenate([one, empty]) for one in (series.values, series.price, series.promotion))
    values, price, promotion = columns
    first = np.concatenate([series.first, np.full(more, series.num_periods)])
    return Series(series.frequency, series.starts, values, first, price, promotion, category)


def _forecasts(config: ForecastConfig, series: Series, run: RunDirectory) -> dict[int, dict[str, np.ndarray]]:
    """By origin (the last is the forecast that is asked for) and method, float64 ``(P, horizon)``."""
    horizon = config.forecast.horizon
    _ = series.filled  # worked out once here, and sent along
    origins = [series.num_periods, *origins_of(series.num_periods, horizon)]
    fitted, with_boosted = wanted_models(config.forecast.method)
    parts = tasks(series, origins, with_boosted=with_boosted)
    with start_executor(config.cluster, num_images=len(origins) * len(series.values)) as executor:
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
