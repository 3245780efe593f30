"""How good predicted numbers are: errors, coverage of intervals, bootstrap intervals over products."""

import numpy as np
import pandas as pd

from retailray.models.metrics import resampled_rows

QUINTILES = 5


def number_metrics(rows: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> dict[str, object]:
    """Measures of predicted numbers.

    Args:
        rows: ``value`` (the truth), ``pred_value, pred_low, pred_high``, ``group`` (products, of which whole ones are
            drawn for intervals).
        bootstrap: resamples behind the 95 % intervals; 0: none.

    Returns:
        ``mae``; ``wape`` (sum of absolute errors by sum of absolute values); ``rmse``; ``bias`` (mean of prediction
        less value); ``r2`` (None where all values are the same); ``median_mae``: the error of always saying the median
        of these rows; ``coverage`` and ``mean_width`` of the intervals; ``num_rows``, ``intervals`` (of ``mae``,
        ``wape`` and ``coverage``) and ``by_value``: a row for each fifth of the rows by value.
    """
    value, error = rows.value.to_numpy(float), (rows.pred_value - rows.value).to_numpy(float)
    spread = float(((value - value.mean()) ** 2).sum()) if value.min() < value.max() else 0.0
    found = _errors(value, error) | {
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).sum()) / spread if spread else None,
        "median_mae": float(np.abs(value - np.median(value)).mean()),
        "coverage": float(_covered(rows).mean()),
        "mean_width": float((rows.pred_high - rows.pred_low).mean()),
        "num_rows": len(rows),
        "intervals": _intervals(rows, value, error, bootstrap, seed) if bootstrap else {},
    }
    return found | {"by_value": _by_value(rows, value, error)}


def _errors(value: np.ndarray, error: np.ndarray) -> dict[str, object]:
    amount = float(np.abs(value).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "wape": float(np.abs(error).sum()) / amount if amount else None,
        "bias": float(error.mean()),
    }


def _covered(rows: pd.DataFrame) -> np.ndarray:
    return ((rows.value >= rows.pred_low) & (rows.value <= rows.pred_high)).to_numpy()


def _intervals(
    rows: pd.DataFrame, value: np.ndarray, error: np.ndarray, num_resamples: int, seed: int
) -> dict[str, list[float]]:
    """95 % percentile intervals; whole products are drawn with replacement, since images of a product are alike."""
    absolute, amount, covered = np.abs(error), np.abs(value), _covered(rows).astype(float)
    sums = np.array(
        [
            (times @ absolute, times.sum(), times @ amount, times @ covered)
            for times in resampled_rows(rows.group.to_numpy(object), num_resamples, seed)
        ]
    )
    draws = {"mae": sums[:, 0] / sums[:, 1], "coverage": sums[:, 3] / sums[:, 1]}
    if (sums[:, 2] > 0).all():
        draws["wape"] = sums[:, 0] / sums[:, 2]
    return {name: [float(one) for one in np.percentile(values, [2.5, 97.5])] for name, values in draws.items()}


def _by_value(rows: pd.DataFrame, value: np.ndarray, error: np.ndarray) -> list[dict[str, object]]:
    """Fifths of the rows, the smallest values first; equal values stay together, so that there may be fewer."""
    edges = np.unique(np.quantile(value, np.linspace(0, 1, QUINTILES + 1)[1:-1], method="lower"))
    of, covered = np.searchsorted(edges, value), _covered(rows)
    found = []
    for number in np.unique(of):
        mine = of == number
        found.append(
            {
                "low": float(value[mine].min()),
                "high": float(value[mine].max()),
                "rows": int(mine.sum()),
                **_errors(value[mine], error[mine]),
                "coverage": float(covered[mine].mean()),
            }
        )
    return found
