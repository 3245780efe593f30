"""Forecasts as tasks: a table names what to forecast, each row an origin and a range of products."""

from typing import Any

import numpy as np
import pyarrow as pa

from retailray.forecasting.boosted import SEEDS, boosted
from retailray.forecasting.series import Series
from retailray.forecasting.statistical import FITTED, by_series

CHUNK = 250  # series of a task
BOOSTED = "boosted"


def wanted_models(method: str) -> tuple[tuple[str, ...], bool]:
    """Which of :data:`FITTED`, and whether the boosted model, ``forecast.method`` needs."""
    if method in ("auto", "average"):
        return FITTED, True
    return tuple(name for name in FITTED if name == method), method == BOOSTED


def tasks(series: Series, origins: list[int], *, with_boosted: bool) -> list[pa.Table]:
    """The largest first: a boosted model learns from all series of an origin."""
    num = len(series.values)
    whole = [{"origin": origin, "kind": BOOSTED, "first": 0, "last": num} for origin in origins]
    parts = [
        {"origin": origin, "kind": "series", "first": first, "last": min(first + CHUNK, num)}
        for origin in origins
        for first in range(0, num, CHUNK)
    ]
    return [pa.Table.from_pylist([row]) for row in (*(whole if with_boosted else []), *parts)]


def forecast_tasks(
    table: pa.Table, *, series: Any, horizon: int, fitted: tuple[str, ...], seed: int, reporter: Any
) -> pa.Table:
    """``origin, method, first, values`` (binary of float32 ``(products, horizon)``)."""
    found: Series = series.get()
    rows = []
    for task in table.to_pylist():
        origin, first, last = task["origin"], task["first"], task["last"]
        if task["kind"] == BOOSTED:
            num_seeds = SEEDS if origin == found.num_periods else 1  # earlier ones are only measured
            forecasts = {BOOSTED: boosted(found, origin, horizon, seed=seed, num_seeds=num_seeds)}
        else:
            forecasts = by_series(found.filled[first:last, :origin], found.frequency, horizon, fitted)
        for method, values in forecasts.items():
            data = np.ascontiguousarray(values, np.float32).tobytes()
            rows.append({"origin": origin, "method": method, "first": first, "values": data})
        reporter.step(1)
    return pa.Table.from_pylist(rows)


def gathered_forecasts(tables: list[pa.Table], num: int, horizon: int) -> dict[int, dict[str, np.ndarray]]:
    """float64 ``(P, horizon)`` by origin and method, the simplest method first; ``average`` is the mean of boosted,
    ets, theta and croston.

    Where the boosted model had too little to learn from, the mean stands in its place, as it is measured with it: all
    methods are compared by the same periods.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    for table in tables:
        for row in table.to_pylist():
            methods = found.setdefault(row["origin"], {})
            whole = methods.setdefault(row["method"], np.full((num, horizon), np.nan))
            values = np.frombuffer(row["values"], np.float32).reshape(-1, horizon)
            whole[row["first"] : row["first"] + len(values)] = values
    for methods in found.values():
        if BOOSTED in methods and set(FITTED) <= set(methods):
            learned = methods[BOOSTED]
            averaged = [methods[name] for name in FITTED] + [learned] * (not np.isnan(learned).all())
            methods["average"] = np.mean(averaged, axis=0)
        if BOOSTED in methods:
            methods[BOOSTED] = np.where(np.isnan(methods[BOOSTED]), methods["mean"], methods[BOOSTED])
    order = ("mean", "naive", "seasonal", *FITTED, "average", BOOSTED)
    return {origin: {name: methods[name] for name in order if name in methods} for origin, methods in found.items()}
