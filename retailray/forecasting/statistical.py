"""Forecasts of one series at a time, by statsforecast."""

import warnings
from typing import Any

import numpy as np

from retailray.interrupts import applications

MEAN = {"D": 28, "W": 8, "M": 3}  # periods
SEASON = {"D": 7, "W": 52, "M": 12}
MIN_LENGTH = 8  # of a series that a model is fitted to
METHODS = ("naive", "mean", "seasonal", "ets", "theta", "croston")


def by_series(values: np.ndarray, frequency: str, horizon: int) -> dict[str, np.ndarray]:
    """Forecasts by method, float64 ``(P, horizon)``; NaN where a series has no sale yet.

    Args:
        values: float64 ``(P, T)``, NaN before the first sale.
    """
    models = applications("statsforecast.models")
    found = {name: np.full((len(values), horizon), np.nan) for name in METHODS}
    for row, whole in enumerate(values):
        series = whole[np.isfinite(whole)]
        if len(series):
            for name, forecast in _one(series, frequency, horizon, models).items():
                found[name][row] = np.maximum(forecast, 0)
    return found


def _one(series: np.ndarray, frequency: str, horizon: int, models: Any) -> dict[str, np.ndarray]:
    mean = np.full(horizon, series[-MEAN[frequency] :].mean())
    found = {"naive": np.full(horizon, series[-1]), "mean": mean}
    season = SEASON[frequency]
    repeated = np.resize(series[-season:], horizon) if len(series) >= season else mean
    length = season if frequency != "W" and len(series) >= 2 * season else 1
    fitted = {"ets": models.AutoETS(season_length=length), "theta": models.AutoTheta(season_length=length)}
    fitted["croston"] = models.CrostonSBA()
    for name, model in fitted.items():
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
