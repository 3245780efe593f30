"""Which method is best on the latest periods (rolling origins), and how far its forecasts are off."""

import dataclasses

import numpy as np

from retailray.forecasting.boosted import MIN_HISTORY
from retailray.forecasting.series import Series

ORIGINS = 6
# of forecasts by their size, within which errors are alike; finer among the largest, which differ most
BIN_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975)
MIN_ERRORS = 20  # that say something of an interval
LAST = 26  # periods that say how much a product's sales change
VOLUMES = ("low", "middle", "high")  # thirds of the products by what they sell
NEW = {"D": 91, "W": 13, "M": 3}  # periods since the first sale: a quarter


@dataclasses.dataclass(frozen=True)
class Errors:
    """Forecasts of one method whose truth is known, a row each: ``product, origin, step, forecast, truth``, and
    ``usual``: :func:`usual_change` of the product before the origin."""

    product: np.ndarray
    origin: np.ndarray
    step: np.ndarray
    forecast: np.ndarray
    truth: np.ndarray
    usual: np.ndarray


def origins_of(num_periods: int, horizon: int) -> list[int]:
    """Up to :data:`ORIGINS` periods from which the ``horizon`` next ones are known, none twice, the last ones first."""
    earliest = max(MIN_HISTORY, num_periods // 3)
    found = [num_periods - back * horizon for back in range(1, ORIGINS + 1)]
    return [origin for origin in found if origin >= earliest]


def errors_of(series: Series, forecasts: dict[int, dict[str, np.ndarray]], method: str) -> Errors:
    """Of series with :data:`MIN_HISTORY` periods of history at the origin."""
    parts = []
    for origin, methods in forecasts.items():
        values = methods[method]
        truth = series.values[:, origin : origin + values.shape[1]]
        old = (origin - series.first >= MIN_HISTORY)[:, None]
        product, step = np.nonzero(old & np.isfinite(truth) & np.isfinite(values[:, : truth.shape[1]]))
        found = values[product, step], truth[product, step], usual_change(series, origin)[product]
        parts.append((product, np.full(len(product), origin), step, *found))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 6
    return Errors(*columns)


def wape(errors: Errors, rows: np.ndarray | None = None) -> float | None:
    """Sum of absolute errors by the sum of sales."""
    keep = np.ones(len(errors.truth), bool) if rows is None else rows
    total = errors.truth[keep].sum()
    return float(np.abs(errors.forecast - errors.truth)[keep].sum() / total) if total > 0 else None


def measures(series: Series, errors: Errors) -> dict[str, object]:
    """Number of periods of products, WAPE, MASE (errors by those of the naive forecast within the history, mean of the
    products), and WAPE by step, by volume and by age of the product."""
    scale = _naive_errors(series)
    known = scale[errors.product] > 0
    scaled = np.abs(errors.forecast - errors.truth)[known] / scale[errors.product][known]
    volume = np.nan_to_num(series.values).mean(1)
    third = np.searchsorted(np.quantile(volume[np.unique(errors.product)], [1 / 3, 2 / 3]), volume)[errors.product]
    new = series.is_new()[errors.product] & (errors.origin - series.first[errors.product] < NEW[series.frequency])
    return {
        "periods": len(errors.truth),
        "wape": wape(errors),
        "mase": float(scaled.mean()) if len(scaled) else None,
        "by_horizon": [wape(errors, errors.step == step) for step in range(int(errors.step.max(initial=-1)) + 1)],
        "by_volume": {name: wape(errors, third == at) for at, name in enumerate(VOLUMES)},
        "by_age": {"new": wape(errors, new), "known": wape(errors, ~new)},
    }


def _naive_errors(series: Series) -> np.ndarray:
    """Mean absolute difference of one period to the next, float64 ``(P,)``."""
    steps = np.abs(np.diff(series.values, axis=1))
    known = np.isfinite(steps)
    return np.where(known, steps, 0).sum(1) / np.maximum(known.sum(1), 1)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Bounds of errors, by their usual size, by size of the forecast and step: ``(bins, steps)``."""

    edges: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def around(self, forecast: np.ndarray, step: np.ndarray, usual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, at least 0. ``usual``: :func:`usual_change` of each forecast's product."""
        bins, steps = np.searchsorted(self.edges, forecast), np.minimum(step, self.low.shape[1] - 1)
        scale = _scale(forecast, usual)
        low, high = forecast + self.low[bins, steps] * scale, forecast + self.high[bins, steps] * scale
        return np.clip(low, 0, forecast), np.maximum(high, forecast)


def usual_change(series: Series, origin: int) -> np.ndarray:
    """Mean absolute change from period to period of the last 26 ones before ``origin``, float64 ``(P,)``."""
    steps = np.abs(np.diff(series.filled[:, max(0, origin - LAST - 1) : origin], axis=1))
    known = np.isfinite(steps)
    return np.where(known, steps, 0).sum(1) / np.maximum(known.sum(1), 1)


def _scale(forecast: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Errors of counts grow like the root of what is expected, and with how much a product's sales change anyway."""
    return np.sqrt(np.maximum(forecast, 0) + 1 + usual**2)


def fit_intervals(errors: Errors, level: int, horizon: int) -> Intervals | None:
    """Split conformal intervals (Lei et al., 2018) from earlier errors; None where there are too few.

    Errors of one origin go together, so that n origins are n draws, and the next is one more: each tail is n / (n + 1)
    of its nominal size. Where a bin has few errors of a step, those of all its steps are taken.
    """
    if len(errors.truth) < MIN_ERRORS:
        return None
    quantiles = [one for one in BIN_QUANTILES if (1 - one) * len(errors.truth) >= MIN_ERRORS * horizon]
    edges = np.unique(np.quantile(errors.forecast, quantiles)) if quantiles else np.zeros(0)
    bins = np.searchsorted(edges, errors.forecast)
    scaled = (errors.truth - errors.forecast) / _scale(errors.forecast, errors.usual)
    num_origins = len(np.unique(errors.origin))
    tail = (100 - level) / 200 * num_origins / (num_origins + 1)
    low, high = np.zeros((len(edges) + 1, horizon)), np.zeros((len(edges) + 1, horizon))
    for at in range(len(edges) + 1):
        of_bin = scaled[bins == at]
        for step in range(horizon):
            mine = scaled[(bins == at) & (errors.step == step)]
            mine = mine if len(mine) >= MIN_ERRORS else of_bin if len(of_bin) >= MIN_ERRORS else scaled
            low[at, step], high[at, step] = np.quantile(mine, [tail, 1 - tail])
    return Intervals(edges, low, high)


def coverage(errors: Errors, level: int, horizon: int) -> float | None:
    """Share of sales within intervals that were fitted on the other origins."""
    inside, count = 0, 0
    for origin in np.unique(errors.origin):
        mine = errors.origin == origin
        intervals = fit_intervals(_part(errors, ~mine), level, horizon)
        if intervals is not None:
            own = _part(errors, mine)
            low, high = intervals.around(own.forecast, own.step.astype(int), own.usual)
            inside += int(((own.truth >= low) & (own.truth <= high)).sum())
            count += len(own.truth)
    return inside / count if count else None


def _part(errors: Errors, keep: np.ndarray) -> Errors:
    return Errors(*(getattr(errors, field.name)[keep] for field in dataclasses.fields(errors)))
