"""Sales of products without history, by how those that look like them began (Skenderi et al., Visuelle, 2021)."""

import dataclasses

import numpy as np

from retailray.forecasting.series import Series

NEIGHBOURS = 10
MIN_CURVES = 3  # launches that say something


@dataclasses.dataclass(frozen=True)
class Launches:
    """First periods of products that were launched within the table: ``product``, int64 ``(L,)``; ``curves``: float64
    ``(L, N)``, sales by periods since the launch, NaN where not known."""

    product: np.ndarray
    curves: np.ndarray


def launches_of(series: Series, end: int, num: int) -> Launches:
    """What is known before period ``end`` of those whose first sale is not in the table's first tenth (maybe older)."""
    early = max(2, series.num_periods // 10)
    product = np.flatnonzero((series.first >= early) & (series.first < end))
    curves = np.full((len(product), num), np.nan)
    for row, number in enumerate(product.tolist()):
        begin = int(series.first[number])
        known = series.values[number, begin : min(end, begin + num)]
        curves[row, : len(known)] = known
    return Launches(product, curves)


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How products are compared: ``vectors``: float32 ``(P, D)`` of length 1, 0 where there is none, or None;
    ``category``: int64 ``(P,)``, -1: unknown."""

    vectors: np.ndarray | None
    category: np.ndarray

    def weights(self, product: int, others: np.ndarray) -> tuple[np.ndarray, str]:
        """Weights ``(L,)`` of launches for a product, and the name of the method."""
        if self.vectors is not None and self.vectors[product].any():
            alike = self.vectors[others] @ self.vectors[product]
            alike = np.where(self.vectors[others].any(1), alike, -np.inf)
            nearest = np.argsort(-alike, kind="stable")[:NEIGHBOURS]
            nearest = nearest[np.isfinite(alike[nearest])]
            if len(nearest) >= MIN_CURVES:
                weights = np.zeros(len(others))
                weights[nearest] = np.exp(5 * (alike[nearest] - alike[nearest].max()))
                return weights, "look_alikes"
        return self.of_category(product, others)

    def of_category(self, product: int, others: np.ndarray) -> tuple[np.ndarray, str]:
        same = (self.category[others] == self.category[product]) & (self.category[product] >= 0)
        if same.sum() >= MIN_CURVES:
            return same.astype(float), "category_launches"
        return np.ones(len(others)), "all_launches"


def launch_forecast(
    launches: Launches, weights: np.ndarray, age: int, horizon: int, own: np.ndarray
) -> np.ndarray | None:
    """Sales in the periods from ``age`` (since the launch) on; None where no launch is known so far.

    What the product sold so far moves the curve up or down: by its sum and that of the others, as if it had sold their
    mean for one more period.
    """
    curve = _weighted(launches.curves, weights)
    wanted = curve[age : age + horizon]
    if np.isnan(wanted).all() or not weights.any():
        return None
    wanted = np.where(np.isnan(wanted), wanted[np.isfinite(wanted)].mean(), wanted)
    usual = np.nan_to_num(curve[:age])
    typical = np.nanmean(curve[: age + horizon])
    return wanted * (np.nansum(own) + typical) / max(1e-9, usual.sum() + typical)


def _weighted(curves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(curves)
    total = (known * weights[:, None]).sum(0)
    return np.where(total > 0, np.where(known, curves, 0).T @ weights / np.maximum(total, 1e-12), np.nan)


def measure_launches(series: Series, likeness: Likeness, horizon: int) -> dict[str, object] | None:
    """WAPE of the first ``horizon`` periods of launched products, each by the launches before it; None: too few."""
    known = launches_of(series, series.num_periods, horizon)
    errors: dict[str, float] = {"look_alikes": 0.0, "category_mean": 0.0, "mean_of_all": 0.0}
    total, count = 0.0, 0
    for row, product in enumerate(known.product.tolist()):
        truth = known.curves[row]
        before = launches_of(series, int(series.first[product]), horizon)
        if np.isnan(truth).any() or len(before.product) < MIN_CURVES:
            continue
        ways = {
            "look_alikes": likeness.weights(product, before.product)[0],
            "category_mean": likeness.of_category(product, before.product)[0],
            "mean_of_all": np.ones(len(before.product)),
        }
        found = {name: launch_forecast(before, one, 0, horizon, np.zeros(0)) for name, one in ways.items()}
        if any(one is None for one in found.values()):
            continue
        total, count = total + truth.sum(), count + 1
        for name, one in found.items():
            errors[name] += float(np.abs(one - truth).sum())  # type: ignore[operator]
    if count < MIN_CURVES or total <= 0:
        return None
    return {"products": count, **{f"wape_{name}": error / total for name, error in errors.items()}}
