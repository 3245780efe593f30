"""What is published of each product: the chosen method with its intervals, launches of new products, closed days."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray.config.shop import ForecastSection
from retailray.data.names import typed
from retailray.data.sales import Sales
from retailray.forecasting.backtest import Errors, fit_intervals, usual_change
from retailray.forecasting.launches import (
    AGES,
    LaunchErrors,
    Launches,
    Likeness,
    launch_bounds,
    launch_forecast,
)
from retailray.forecasting.series import Series, closed_weekdays, next_starts

UNMEASURED = "mean"  # where nothing could be measured
UNKNOWN = "unknown"  # of products without any sale, where no launches are known


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is published: ``value``, ``low``, ``high``: float64 ``(P, horizon)``, NaN: unknown; ``method``: names,
    object ``(P,)``."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    method: np.ndarray


def expected(
    series: Series, forecasts: dict[str, np.ndarray], chosen: str, errors: Errors, section: ForecastSection
) -> Expected:
    """By the chosen method, with intervals of its errors."""
    values, methods = forecasts[chosen].copy(), np.full(len(series.values), chosen, object)
    unknown = np.isnan(values).any(1)
    values[unknown], methods[unknown] = forecasts[UNMEASURED][unknown], UNMEASURED
    intervals = fit_intervals(errors, section.level, section.horizon)
    if intervals is None:
        return Expected(values, np.full(values.shape, np.nan), np.full(values.shape, np.nan), methods)
    step = np.tile(np.arange(section.horizon), len(values))
    usual = np.repeat(usual_change(series, series.num_periods), section.horizon)
    low, high = (one.reshape(values.shape) for one in intervals.around(values.ravel(), step, usual))
    return Expected(values, low, high, methods)


def launch(  # many because launches are compared, measured and drawn on
    found: Expected, series: Series, launches: Launches, errors: LaunchErrors, likeness: Likeness, level: int
) -> None:
    """Products with less than :data:`AGES` periods: by the launches of others, where there are some."""
    horizon = found.value.shape[1]
    ages = series.num_periods - series.first
    own_mean = errors.own_mean_is_better()
    bounds = {young: launch_bounds(errors, level, young=young) for young in (False, True)}
    for product in np.flatnonzero(ages < AGES).tolist():
        own = series.values[product, series.first[product] :]
        others = launches.known_at(series.num_periods, without=product)
        ways = likeness.ways(product, others.product)
        values, name = None, UNKNOWN
        if own_mean and np.isfinite(own).any():
            values, name = np.full(horizon, np.nanmean(own)), UNMEASURED
        elif ways:
            name = next(iter(ways))
            values = launch_forecast(others, ways[name], own, horizon)
        if values is None:
            if np.isnan(found.value[product]).any():
                found.value[product], found.method[product] = np.nan, UNKNOWN
            found.low[product], found.high[product] = np.nan, np.nan
            continue
        found.value[product], found.method[product] = values, name
        low, high = bounds[len(own) > 0] or (np.nan, np.nan)
        found.low[product] = np.clip(values + low * (values + 1), 0, values)
        found.high[product] = np.maximum(values + high * (values + 1), values)


def _closed_periods(series: Series, horizon: int) -> np.ndarray:
    """bool ``(horizon,)``: days on which the shop is closed every week."""
    return closed_weekdays(series)[(next_starts(series, horizon).astype(np.int64) + 3) % 7]


def expected_table(sales: Sales, series: Series, names: list[str], found: Expected) -> pa.Table:
    """A row for each product and period: product, ``date, horizon, forecast, low, high, method``."""
    horizon = found.value.shape[1]
    closed = _closed_periods(series, horizon)
    value, low, high = (np.where(closed, 0, one) for one in (found.value, found.low, found.high))
    dates = pd.to_datetime(np.tile(next_starts(series, horizon), len(names))).date
    products = typed(names, sales.kind)
    return pa.table(
        {
            sales.column: products.take(pa.array(np.repeat(np.arange(len(names)), horizon))),
            "date": pa.array(dates, pa.date32()),
            "horizon": np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(names)),
            "forecast": pa.array(value.ravel(), from_pandas=True),
            "low": pa.array(low.ravel(), from_pandas=True),
            "high": pa.array(high.ravel(), from_pandas=True),
            "method": np.repeat(found.method, horizon).tolist(),
        }
    )
