"""One gradient-boosted model for all series and horizons (LightGBM, absolute error).

It forecasts sales relative to the mean of the last periods, from what happened before: a product that sells ten a week
and one that sells a thousand teach each other. Absolute error weighted by that mean is what WAPE measures.
"""

from typing import Any

import numpy as np

from retailray.forecasting.series import Series, day_of_year, next_starts
from retailray.interrupts import applications

# periods that means are taken over: short, middle, long; and after how many periods a season comes again
WINDOWS = {"D": (7, 28, 56), "W": (4, 8, 13), "M": (3, 6, 12)}
SEASONS = {"D": (7, 364), "W": (52,), "M": (12,)}
MIN_HISTORY = 4  # periods since the first sale that a series has at least to be taught with
MAX_ROWS = 1_500_000
SEEDS, ROUNDS = 3, 200
PARAMETERS = {
    "objective": "l1",
    "learning_rate": 0.03,
    "num_leaves": 31,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 50.0,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
}
LEAF_SHARE = 1e-3  # of the rows, that a leaf has at least
SMOOTHING = 0.3


def boosted(series: Series, end: int, horizon: int, *, seed: int, num_seeds: int = SEEDS) -> np.ndarray:
    """Forecasts of ``horizon`` periods from period ``end`` on, float64 ``(P, horizon)``, by what was before."""
    lightgbm = applications("lightgbm")
    past = _Past(series, end, horizon)
    columns = past.training()
    found = np.zeros((len(series.values), horizon))
    if columns is None:
        return np.full_like(found, np.nan)
    values, target, weight = columns
    data = lightgbm.Dataset(values, target, weight=weight, free_raw_data=False)
    settings: dict[str, Any] = PARAMETERS | {"num_threads": 1}  # tasks run side by side
    settings["min_data_in_leaf"] = max(5, int(LEAF_SHARE * len(values)))
    for number in range(num_seeds):
        booster = lightgbm.train(settings | {"seed": seed * SEEDS + number}, data, ROUNDS)
        for step in range(horizon):
            features, base = past.features(end, step)
            found[:, step] += booster.predict(features, num_threads=1) * base / num_seeds
    return np.maximum(found, 0)


class _Past:
    """What is known before a period."""

    def __init__(self, series: Series, end: int, horizon: int) -> None:
        self.series, self.end, self.horizon = series, end, horizon
        self.known = series.values[:, :end]
        self.filled = series.filled[:, :end]
        self.short, self.middle, self.long = WINDOWS[series.frequency]
        self.starts = np.concatenate([series.starts[:end], series.starts[end : end + horizon]])
        missing = end + horizon - len(self.starts)
        if missing > 0:
            self.starts = np.concatenate([self.starts, next_starts(series, missing)])
        self.smoothed = self._smoothed()

    def _smoothed(self) -> np.ndarray:
        found = np.full(self.filled.shape, np.nan)
        level = np.full(len(self.filled), np.nan)
        for period in range(self.end):
            value = self.filled[:, period]
            level = np.where(np.isnan(level), value, SMOOTHING * value + (1 - SMOOTHING) * level)
            found[:, period] = level
        return found

    def training(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Features, target and weight of all earlier forecasts whose truth is known; None: too few."""
        origins = np.arange(min(self.long, max(MIN_HISTORY, self.end // 3)), self.end)
        most = max(1, MAX_ROWS // (self.horizon * max(1, len(self.filled))))
        if len(origins) > most:
            origins = origins[np.unique(np.linspace(0, len(origins) - 1, most).astype(int))]
        parts = []
        for origin in origins.tolist():
            old_enough = origin - self.series.first >= MIN_HISTORY
            for step in range(min(self.horizon, self.end - origin)):
                truth = self.known[:, origin + step]
                rows = np.flatnonzero(old_enough & np.isfinite(truth))
                features, base = self.features(origin, step)
                parts.append((features[rows], truth[rows] / base[rows], base[rows]))
        if sum(len(part[1]) for part in parts) < 20:
            return None
        values, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        return values, target, weight

    def features(self, origin: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """float32 ``(P, F)`` for the forecast of period ``origin + step``, and what it is relative to ``(P,)``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._features(origin, step)

    def _features(self, origin: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        past = self.filled[:, :origin]
        windows = {size: past[:, -size:] for size in (self.short, self.middle, self.long)}
        means = {size: _mean(values) for size, values in windows.items()}
        base = np.nan_to_num((means[self.short] + means[self.middle]) / 2) + 0.5
        lags = [past[:, -lag] / base if lag <= origin else np.full(len(past), np.nan) for lag in range(1, 5)]
        columns = [*lags, *(mean / base for mean in means.values()), _mean(past) / base]
        columns += [np.std(np.nan_to_num(windows[self.middle]), axis=1) / base, self.smoothed[:, origin - 1] / base]
        columns += [np.nan_to_num(np.median(windows[size], axis=1)) / base for size in (self.middle, self.long)]
        columns += [(windows[self.long] == 0).mean(1), (means[self.short] - means[self.long]) / base, np.log(base)]
        columns += self._of_groups(windows, origin) + self._of_prices(origin) + self._of_seasons(origin, step, base)
        columns.append(np.full(len(past), step))
        return np.stack(columns, axis=1).astype(np.float32), base

    def _of_groups(self, windows: dict[int, np.ndarray], origin: int) -> list[np.ndarray]:
        """How the category and the whole shop changed."""
        sums = [np.nan_to_num(windows[size]).sum(1) / size for size in (self.short, self.long)]
        groups = self.series.category + 1  # 0: unknown
        by_group = [np.bincount(groups, one, minlength=groups.max() + 1)[groups] for one in sums]
        whole = sums[0].sum() / max(1e-9, sums[1].sum())
        return [by_group[0] / (by_group[1] + 1e-9), np.full(len(groups), whole), groups.astype(float)]

    def _of_prices(self, origin: int) -> list[np.ndarray]:
        """The last price by the usual one; whether the product was promoted just now, and how often."""
        columns = []
        for values in (self.series.price, self.series.promotion):
            last, mean = values[:, origin - 1], _mean(values[:, max(0, origin - self.middle) : origin])
            columns.append(last / np.where(mean > 0, mean, np.nan))
        return [*columns, _mean(self.series.promotion[:, max(0, origin - self.middle) : origin])]

    def _of_seasons(self, origin: int, step: int, base: np.ndarray) -> list[np.ndarray]:
        """What was sold a season earlier, and where two years are known the day of the year."""
        columns = []
        for season in SEASONS[self.series.frequency]:
            lag = origin + step - season
            columns.append(self.filled[:, lag] / base if 0 <= lag < origin else np.full(len(base), np.nan))
            again = [self.filled[:, at] for at in range(lag, max(-1, lag - 4 * season), -season) if 0 <= at < origin]
            columns.append(_mean(np.stack(again, axis=1)) / base if again else np.full(len(base), np.nan))
        year = SEASONS[self.series.frequency][-1]
        day = day_of_year(self.starts[origin + step : origin + step + 1])[0] if self.end >= 2 * year else np.nan
        return [*columns, np.full(len(base), day)]


def _mean(values: np.ndarray) -> np.ndarray:
    """Of the known values of each row; NaN where there is none."""
    known = np.isfinite(values)
    counts = known.sum(1)
    return np.where(counts, np.where(known, values, 0).sum(1) / np.maximum(counts, 1), np.nan)
