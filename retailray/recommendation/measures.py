"""How good recommendations were, by what was bought afterwards."""

import dataclasses

import numpy as np

GROUPS = ("all", "new", "unsold")  # products; never bought by the shopper before; never bought by anybody before


@dataclasses.dataclass
class Tally:
    """Of one method, shopper by shopper and day by day: recall and NDCG of the first k, NaN where nothing could be
    found, by group of products; what was recommended to how many; self-information of what was recommended [bits]."""

    recall: dict[str, list[np.ndarray]]
    ndcg: dict[str, list[np.ndarray]]
    recommended: np.ndarray
    surprise: list[np.ndarray]


def new_tally(num_products: int) -> Tally:
    return Tally({name: [] for name in GROUPS}, {name: [] for name in GROUPS}, np.zeros(num_products, np.int64), [])


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best products of each row, int64 ``(B, k)``, the best first; of equal ones the first. -1: scored -inf."""
    k = min(k, scores.shape[1])
    part = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    found, values = (np.take_along_axis(one, order, axis=1) for one in (part, values))
    return np.where(np.isfinite(values), found, -1)


def measure(recommended: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and NDCG of each row, float64 ``(B,)``; NaN where the truth is empty.

    Recall is the share of what was bought that is among the k recommended. NDCG (Järvelin and Kekäläinen, 2002) with
    gain 1, by the best order of what was bought.

    Args:
        recommended: products, int64 ``(B, k)``; -1: none. truth: bool ``(B, I)``.
    """
    k = recommended.shape[1]
    hits = np.take_along_axis(truth, np.maximum(recommended, 0), axis=1) & (recommended >= 0)
    bought = truth.sum(1)
    discounts = 1 / np.log2(np.arange(2, 2 + k))
    ideal = np.concatenate([[np.nan], np.cumsum(discounts)])[np.minimum(bought, k)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits.sum(1) / np.where(bought, bought, np.nan), (hits * discounts).sum(1) / ideal


def summary(tally: Tally, num_products: int) -> dict[str, object]:
    """Means with 95 % intervals over shoppers, share of products that were recommended at all, novelty."""
    found: dict[str, object] = {
        "coverage": float((tally.recommended > 0).sum() / max(1, num_products)),
        "novelty_bits": float(np.concatenate(tally.surprise).mean()) if tally.surprise else None,
    }
    for group in GROUPS:
        recall, ndcg = _by_shopper(tally.recall[group]), _by_shopper(tally.ndcg[group])
        found[group] = {
            "shoppers": int(np.isfinite(recall).sum()),
            "recall": mean_of(recall),
            "ndcg": mean_of(ndcg),
            "recall_interval": interval(recall),
            "ndcg_interval": interval(ndcg),
        }
    return found


def value_of(tally: Tally, group: str) -> np.ndarray:
    """Mean of recall and NDCG of each shopper, ``(B,)``, by which methods are compared."""
    return (_by_shopper(tally.recall[group]) + _by_shopper(tally.ndcg[group])) / 2


def _by_shopper(days: list[np.ndarray]) -> np.ndarray:
    """The mean over the days of each shopper; a shopper of several days counts once in intervals."""
    if not days:
        return np.zeros(0)
    together = np.stack(days)
    counts = np.isfinite(together).sum(0)
    return np.where(counts, np.nansum(together, axis=0) / np.maximum(counts, 1), np.nan)


def mean_of(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % of the mean, by the spread between shoppers."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    half = 1.96 * known.std(ddof=1) / len(known) ** 0.5
    return float(known.mean() - half), float(known.mean() + half)
