"""Sales of products without history, by how those that look like them began (Skenderi et al., Visuelle, 2021)."""

import dataclasses

import numpy as np

from retailray.forecasting.boosted import MIN_HISTORY
from retailray.forecasting.series import Series

NEIGHBOURS = 10
MIN_CURVES = 3  # launches that say something
AGES = MIN_HISTORY  # periods of history, with fewer of which a product is forecast by launches
MEASURED = 300  # launches that are measured, at most
MIN_MEASURED = 20  # launches from whose errors intervals are made
LOOK_ALIKES, OF_CATEGORY, OF_ALL, OWN_MEAN = "look_alikes", "category_launches", "all_launches", "mean"


@dataclasses.dataclass(frozen=True)
class Launches:
    """First periods of products that were launched within the table: ``product``, int64 ``(L,)``; ``start``: period of
    the launch, int64 ``(L,)``; ``curves``: float64 ``(L, N)``, sales by periods since then, NaN where not known."""

    product: np.ndarray
    start: np.ndarray
    curves: np.ndarray

    def known_at(self, end: int, *, without: int) -> "Launches":
        """What was known before period ``end`` of other products."""
        keep = (self.start < end) & (self.product != without)
        start = self.start[keep]
        curves = np.where(start[:, None] + np.arange(self.curves.shape[1]) < end, self.curves[keep], np.nan)
        return Launches(self.product[keep], start, curves)


def launches_of(series: Series, horizon: int) -> Launches:
    """All launches, of each the periods that forecasts of young products reach to."""
    product = np.flatnonzero(series.is_new() & (series.first < series.num_periods))
    curves = np.full((len(product), AGES + horizon), np.nan)
    for row, number in enumerate(product.tolist()):
        begin = int(series.first[number])
        known = series.values[number, begin : begin + AGES + horizon]
        curves[row, : len(known)] = known
    return Launches(product, series.first[product], curves)


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How products are compared: ``vectors``: float32 ``(P, D)`` of length 1, 0 where there is none, or None;
    ``category``: int64 ``(P,)``, -1: unknown."""

    vectors: np.ndarray | None
    category: np.ndarray

    def ways(self, product: int, others: np.ndarray) -> dict[str, np.ndarray]:
        """Weights ``(L,)`` of launches for a product, by the name of the method, the best one first; empty: too few."""
        found = {}
        if self.vectors is not None and self.vectors[product].any():
            alike = np.where(self.vectors[others].any(1), self.vectors[others] @ self.vectors[product], -np.inf)
            nearest = np.argsort(-alike, kind="stable")[:NEIGHBOURS]
            nearest = nearest[np.isfinite(alike[nearest])]
            if len(nearest) >= MIN_CURVES:
                weights = np.zeros(len(others))
                weights[nearest] = np.exp(5 * (alike[nearest] - alike[nearest].max()))
                found[LOOK_ALIKES] = weights
        same = (self.category[others] == self.category[product]) & (self.category[product] >= 0)
        if same.sum() >= MIN_CURVES:
            found[OF_CATEGORY] = same.astype(float)
        if len(others) >= MIN_CURVES:
            found[OF_ALL] = np.ones(len(others))
        return found


def launch_forecast(launches: Launches, weights: np.ndarray, own: np.ndarray, horizon: int) -> np.ndarray | None:
    """Sales in the periods that follow the product's ``own`` ones, float64 ``(A,)``, NaN where unknown; None where no
    launch is known so far.

    The curve is the weighted mean of launches. What the product sold moves it up or down, as a gamma-Poisson model
    does: its units and one more, by those that the curve has in the same periods and one more.
    """
    curve = _weighted(launches.curves, weights)
    age = len(own)
    wanted = curve[age : age + horizon]
    if np.isnan(wanted).all():
        return None
    wanted = np.where(np.isnan(wanted), wanted[np.isfinite(wanted)].mean(), wanted)
    both = np.isfinite(own) & np.isfinite(curve[:age])
    return wanted * (own[both].sum() + 1) / (curve[:age][both].sum() + 1)


def _weighted(curves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(curves)
    total = (known * weights[:, None]).sum(0)
    return np.where(total > 0, np.where(known, curves, 0).T @ weights / np.maximum(total, 1e-12), np.nan)


@dataclasses.dataclass(frozen=True)
class LaunchErrors:
    """Forecasts of launched products at the ages from 0 to :data:`AGES` - 1 by the launches before them, a row each:
    ``product``; ``way``: names, object; ``best``: whether it is the first of :meth:`Likeness.ways`; ``age``,
    ``forecast``, ``truth``; all ``(N,)``."""

    product: np.ndarray
    way: np.ndarray
    best: np.ndarray
    age: np.ndarray
    forecast: np.ndarray
    truth: np.ndarray

    def wape(self, keep: np.ndarray) -> float | None:
        total = self.truth[keep].sum()
        return float(np.abs(self.forecast - self.truth)[keep].sum() / total) if total > 0 else None

    def own_mean_is_better(self) -> bool:
        """Whether products with one to three periods are forecast better by the mean of these; the same products."""
        curve, own = self.young()
        return curve is not None and own is not None and own < curve

    def young(self) -> tuple[float | None, float | None]:
        """WAPE by launches and by the own mean, of products and ages that were forecast in both ways."""
        case, mean = self.product * AGES + self.age, self.way == OWN_MEAN
        both = (self.age > 0) & np.isin(case, np.intersect1d(case[self.best], case[mean]))
        return self.wape(both & self.best), self.wape(both & mean)


def measure_launches(
    series: Series, launches: Launches, likeness: Likeness, horizon: int, *, seed: int
) -> LaunchErrors:
    """Of at most :data:`MEASURED` launched products whose next periods are known."""
    drawn = np.sort(np.random.default_rng(seed).permutation(len(launches.product))[:MEASURED])
    parts: list[tuple[int, str, bool, int, np.ndarray, np.ndarray]] = []
    for row in drawn.tolist():
        product, start = int(launches.product[row]), int(launches.start[row])
        for age in range(AGES):
            truth = series.values[product, start + age : start + age + horizon]
            own = series.values[product, start : start + age]
            before = launches.known_at(start + age, without=product)
            if len(truth) < horizon or np.isnan(truth).any():
                continue
            for number, (way, weights) in enumerate(likeness.ways(product, before.product).items()):
                found = launch_forecast(before, weights, own, horizon)
                if found is not None:
                    parts.append((product, way, number == 0, age, found, truth))
            if np.isfinite(own).any():
                parts.append((product, OWN_MEAN, False, age, np.full(horizon, np.nanmean(own)), truth))
    if not parts:
        none = np.zeros(0)
        return LaunchErrors(none, none.astype(object), none.astype(bool), none, none, none)
    products, way, best, age_of, forecast, known = zip(*parts, strict=True)
    product_of, ways, bests, ages = (np.repeat(np.array(one), horizon) for one in (products, way, best, age_of))
    return LaunchErrors(product_of, ways, bests, ages, np.concatenate(forecast), np.concatenate(known))


def launch_facts(errors: LaunchErrors) -> dict[str, object] | None:
    """WAPE of the first periods by way, of the products that were measured by all of the ways; of those with one to
    three periods of history by the best way and by their own mean. None: too few."""
    first = errors.age == 0
    by_way = {
        way: set(errors.product[first & (errors.way == way)].tolist()) for way in (LOOK_ALIKES, OF_CATEGORY, OF_ALL)
    }
    there = [products for products in by_way.values() if products]
    common = set.intersection(*there) if there else set()
    if len(common) < MIN_CURVES:
        return None
    same = first & np.isin(errors.product, sorted(common))
    facts: dict[str, object] = {"products": len(common)}
    facts |= {f"wape_{way}": errors.wape(same & (errors.way == way)) for way in by_way if by_way[way]}
    facts["wape_young"], facts["wape_young_mean"] = errors.young()
    return facts


def launch_bounds(errors: LaunchErrors, level: int, *, young: bool) -> tuple[float, float] | None:
    """Lower and upper bound that ``level`` % of the relative errors, (sales - forecast) / (forecast + 1), lie between;
    None: too few launches.

    ``young``: of products with one to three periods of history, else of those with none.
    """
    way = errors.way == OWN_MEAN if young and errors.own_mean_is_better() else errors.best
    keep = way & ((errors.age > 0) == young)
    if len(np.unique(errors.product[keep])) < MIN_MEASURED:
        return None
    relative = (errors.truth[keep] - errors.forecast[keep]) / (errors.forecast[keep] + 1)
    tail = (100 - level) / 200
    low, high = np.quantile(relative, [tail, 1 - tail])
    return float(low), float(high)
