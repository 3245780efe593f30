"""Groups of shoppers who buy alike: k-means on what they buy, the number chosen by clarity and stability."""

import dataclasses
import warnings

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from retailray.errors import ConfigError

SAMPLE = 20_000  # shoppers that groups are found on
SIZES = 64  # numbers that stand for what a shopper buys, at most
BOOTSTRAPS = 10
STABLE = 0.6  # mean adjusted Rand index of bootstraps, below which groups are no groups
MIN_SHOPPERS = 20
ROUNDING = 1e-4  # of parts of length 1 in float32
CLEAR = 5_000  # shoppers whose silhouette is worked out


@dataclasses.dataclass(frozen=True)
class Segments:
    """``of``: segment of each shopper, int64 ``(S,)``, 0 is the largest, -1: in none; ``tried``: by number of segments
    ``silhouette`` and ``stability``; ``note``: what to say of it; ``stability``: of the number that is used."""

    of: np.ndarray
    tried: list[dict[str, float]]
    note: str
    stability: float | None = None

    def among(self, rows: np.ndarray) -> "Segments":
        """Of all shoppers, where those of ``rows``, bool ``(S,)``, have these segments and the others none."""
        of = np.full(len(rows), -1, np.int64)
        of[rows] = self.of
        return dataclasses.replace(self, of=of)

    @property
    def num(self) -> int:
        return int(self.of.max(initial=0)) + 1


def tastes(rows: pa.Table, shoppers: np.ndarray, category: np.ndarray, pictures: np.ndarray | None) -> np.ndarray:
    """What shoppers buy, float32 ``(S, D)``: shares of categories (roots: Hellinger distance), and the mean picture
    of the products; without both, an SVD of the products themselves.

    Args:
        rows: ``shopper, product, times``. shoppers: numbers ``(S,)``, ascending. category: number by product, -1:
            unknown. pictures: float32 ``(P, D)`` of length 1, 0 where there is none.
    """
    shopper, product, times = (rows.column(name).to_numpy() for name in ("shopper", "product", "times"))
    weights = sp.csr_matrix(
        (np.log1p(times).astype(np.float32), (np.searchsorted(shoppers, shopper), product)),
        shape=(len(shoppers), len(category)),
    )
    parts = []
    if (category >= 0).any():
        known = np.flatnonzero(category >= 0)
        of_category = sp.csr_matrix(
            (np.ones(len(known), np.float32), (known, category[known])), shape=(len(category), category.max() + 1)
        )
        sums = np.asarray((weights @ of_category).todense())
        shares = np.sqrt(sums / np.maximum(sums.sum(1, keepdims=True), 1e-9))
        parts.append(shares - shares.mean(0))
    if pictures is not None:
        profile = weights @ pictures
        profile = profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
        parts.append(profile - profile.mean(0))
    if not parts:
        parts.append(_of_products(weights))
    scales = [float(np.sqrt((one**2).sum(1).mean())) for one in parts]
    # what does not differ but by rounding says nothing
    scaled = [one / scale if scale > ROUNDING else np.zeros_like(one) for one, scale in zip(parts, scales, strict=True)]
    return np.concatenate(scaled, axis=1)


def _of_products(weights: sp.csr_matrix) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD

    buyers = np.asarray((weights > 0).sum(0)).ravel()
    rare = weights @ sp.diags(np.log((1 + weights.shape[0]) / (1 + buyers)))
    lengths = np.sqrt(np.asarray(rare.multiply(rare).sum(1)).ravel())
    unit = sp.diags(1 / np.maximum(lengths, 1e-9)) @ rare
    size = min(16, min(unit.shape) - 1)
    if size < 1:
        return np.zeros((weights.shape[0], 1))
    return TruncatedSVD(size, random_state=0).fit_transform(unit.tocsr())


def find_segments(values: np.ndarray, *, num: int, most: int, seed: int) -> Segments:
    """Groups of rows. ``num``: how many; 0: 2 to ``most``, the clearest (silhouette) of those that are stable.

    Raises ConfigError where shoppers do not differ in ``num`` ways.

    Stability is the mean adjusted Rand index of the groups of bootstrap samples with those of all (Hennig, 2007).
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    draw = np.random.default_rng(seed)
    one, few = np.zeros(len(values), np.int64), f"fewer than {MIN_SHOPPERS} shoppers buy anything: one segment"
    if len(values) < MIN_SHOPPERS:
        return Segments(one, [], few)
    rows = np.sort(draw.permutation(len(values))[:SAMPLE])
    sample = values[rows]
    kinds = len(np.unique(sample.round(4), axis=0))
    if num > kinds:
        raise ConfigError([f"shoppers.segments = {num}: shoppers buy in {kinds} different ways; ask for no more"])
    if kinds < 2:
        return Segments(one, [], "all shoppers buy alike: one segment")
    size = min(SIZES, *sample.shape)
    reduced = PCA(size, random_state=seed).fit(sample)
    points, everyone = reduced.transform(sample), reduced.transform(values)
    fits, tried = {}, []
    for k in [num] if num else range(2, min(most, kinds) + 1):
        fits[k] = KMeans(k, n_init=5, random_state=seed).fit(points)
        agreed = []
        for _ in range(BOOTSTRAPS):
            drawn = points[draw.integers(len(points), size=len(points))]
            again = KMeans(k, n_init=2, random_state=int(draw.integers(2**31)))
            with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # all of one kind were drawn
                again.fit(drawn)
            agreed.append(adjusted_rand_score(fits[k].labels_, again.predict(points)))
        some = draw.permutation(len(points))[:CLEAR]
        labels = fits[k].labels_[some]
        clear = silhouette_score(points[some], labels) if 1 < len(np.unique(labels)) < len(some) else 0.0
        tried.append({"segments": k, "silhouette": float(clear), "stability": float(np.mean(agreed))})
    stable = [one for one in tried if one["stability"] >= STABLE]
    best = max(stable or tried, key=lambda one: one["silhouette"])
    note = "" if stable else f"no number of segments is stable (adjusted Rand index of {STABLE} over bootstraps)"
    labels = fits[int(best["segments"])].predict(everyone)
    order = np.argsort(-np.bincount(labels, minlength=int(best["segments"])), kind="stable")
    return Segments(np.argsort(order)[labels].astype(np.int64), tried, note, best["stability"])


def matched(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Which earlier segment each present one has most in common with, one to one, int64; -1: none.

    Args:
        before, now: segments of the same shoppers, int64 ``(S,)``.
    """
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((now.max(initial=0) + 1, before.max(initial=0) + 1))
    np.add.at(table, (now, before), 1)
    rows, columns = linear_sum_assignment(-table)
    found = np.full(len(table), -1)
    found[rows] = np.where(table[rows, columns] > 0, columns, -1)
    return found
