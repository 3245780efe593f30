"""Forecasts of one series at a time, by statsforecast."""

import warnings
from typing import Any

import numpy as np

from retailray.interrupts import applications

MEAN = {"D": 28, "W": 8, "M": 3}  # periods
SEASON = {"D": 7, "W": 52, "M": 12}
MIN_LENGTH = 8  # of a series that a model is fitted to
SIMPLE = ("naive", "mean", "seasonal")
FITTED = ("ets", "theta", "croston")  # some milliseconds a series, the others none


def by_series(values: np.ndarray, frequency: str, horizon: int, fitted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Forecasts by method, float64 ``(P, horizon)``; NaN where a series has no sale yet.

    Args:
        values: float64 ``(P, T)``, NaN before the first sale.
        fitted: those of :data:`FITTED` that are wanted beside :data:`SIMPLE`.
    """
    models = applications("statsforecast.models")
    found = {name: np.full((len(values), horizon), np.nan) for name in (*SIMPLE, *fitted)}
    for row, whole in enumerate(values):
        series = whole[np.isfinite(whole)]
        if len(series):
            for name, forecast in _one(series, frequency, horizon, fitted, models).items():
                found[name][row] = np.maximum(forecast, 0)
    return found


def _one(
    series: np.ndarray, frequency: str, horizon: int, fitted: tuple[str, ...], models: Any
) -> dict[str, np.ndarray]:
    mean = np.full(horizon, series[-MEAN[frequency] :].mean())
    found = {"naive": np.full(horizon, series[-1]), "mean": mean}
    season = SEASON[frequency]
    repeated = np.resize(series[-season:], horizon) if len(series) >= season else mean
    length = season if frequency != "W" and len(series) >= 2 * season else 1
    makers = {"ets": models.AutoETS, "theta": models.AutoTheta}
    for name in fitted:
        model = makers[name](season_length=length) if name in makers else models.CrostonSBA()
        found[name] = _forecast(model, series, horizon, mean)
    return found | {"seasonal": repeated}


def _forecast(model: Any, series: np.ndarray, horizon: int, instead: np.ndarray) -> np.ndarray:
    """Of a series that is too short, all zero or not to be fitted: the mean."""
    if len(series) < MIN_LENGTH or not series.any():
        return instead
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.asarray(model.forecast(y=series, h=horizon)["mean"], float)
    except Exception:  # whatever of its numerics fails; the method is measured with the mean in its place
        return instead
    return found if np.isfinite(found).all() else instead
