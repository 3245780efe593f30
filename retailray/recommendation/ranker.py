"""A ranker over candidates that all methods bring, by LightGBM."""

from typing import Any

import numpy as np

from retailray.interrupts import applications
from retailray.recommendation.histories import HALF_LIVES, Histories
from retailray.recommendation.methods import Methods, Scores

OWN, OTHERS = 100, 50  # candidates: of the shopper's own products, and of each other method
SOURCES = ("neighbours_recent", "neighbours_ever", "together", "popularity_28", "content")
SEEDS = 5  # of several boosters, which differ by their draws, the mean is taken
MIN_GROUPS = 20  # shoppers and days that are learnt from
PARAMETERS = {
    "objective": "rank_xendcg",
    "learning_rate": 0.03,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
}
# by recommend.repeat: of products that are new to a shopper few are bought, so that less can be learnt
ROUNDS = {True: 200, False: 150}
SIZES = {True: {"num_leaves": 31, "lambda_l2": 5.0}, False: {"num_leaves": 7, "lambda_l2": 50.0}}
LEAF_SHARE = {True: 1e-4, False: 1e-3}  # of the candidates, that a leaf has at least


def candidates(past: Histories, scores: Scores, allowed: np.ndarray, *, repeat: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a shopper and a product that the ranker orders: row and product, int64 ``(N,)``, in the order of rows.

    ``allowed``: bool ``(I,)``. ``repeat``: also what the shopper has bought.
    """
    bought = past.bought()
    chosen = np.zeros_like(bought)
    own = np.where(bought & allowed & repeat, scores["own_purchases_112"], -np.inf)
    others = [np.where(bought | ~allowed, -np.inf, scores[name]) for name in SOURCES if name in scores]
    for values, most in ((own, OWN), *((one, OTHERS) for one in others)):
        k = min(most, values.shape[1])
        best = np.argpartition(-values, k - 1, axis=1)[:, :k]
        new = np.isfinite(np.take_along_axis(values, best, axis=1)) | np.take_along_axis(chosen, best, axis=1)
        np.put_along_axis(chosen, best, new, axis=1)
    row, product = np.nonzero(chosen)
    return row, product


def features(past: Histories, methods: Methods, scores: Scores, row: np.ndarray, product: np.ndarray) -> np.ndarray:
    """float32 ``(N, F)``; NaN where the shopper has not bought the product."""
    at = past.find(row, product)
    known = at >= 0

    def of_pair(values: np.ndarray) -> np.ndarray:
        return np.where(known, values[np.maximum(at, 0)], np.nan) if len(values) else np.full(len(at), np.nan)

    count, last, first = (of_pair(values) for values in (past.count, past.last, past.first))
    gap = (first - last) / np.maximum(count - 1, 1)
    baskets, recent = past.baskets[row], past.recent_baskets[row]
    columns = [count, last, first, gap, last / np.maximum(gap, 1), count / np.maximum(baskets, 1), baskets, recent]
    columns += [of_pair(past.decayed[half]) for half in HALF_LIVES]
    columns += [values[product] for values in methods.popularity.values()]
    names = (*SOURCES, "als", "own_and_neighbours")
    columns += [scores[name][row, product] for name in names if name in scores and not name.startswith("popularity")]
    return np.stack(columns, axis=1).astype(np.float32)


class Examples:
    """Candidates of some days, and whether they were bought."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, row: np.ndarray, values: np.ndarray, bought: np.ndarray) -> None:
        """Of shoppers who bought anything among their candidates: others say nothing."""
        useful = np.isin(row, np.unique(row[bought]))
        self.parts.append((values[useful], bought[useful], np.unique(row[useful], return_counts=True)[1]))


class Ranker:
    """The mean of some of LightGBM's boosters."""

    def __init__(self, boosters: list[Any], *, threads: int) -> None:
        self.boosters, self.threads = boosters, threads

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.mean([one.predict(values, num_threads=self.threads) for one in self.boosters], axis=0)

    def texts(self) -> list[str]:
        return [booster.model_to_string() for booster in self.boosters]

    @classmethod
    def of_texts(cls, texts: list[str], *, threads: int) -> "Ranker":
        return cls([applications("lightgbm").Booster(model_str=text) for text in texts], threads=threads)


def fit_ranker(
    examples: list[Examples], *, repeat: bool, threads: int, seed: int, num_seeds: int = SEEDS
) -> Ranker | None:
    """None where there is nothing to learn from."""
    parts = [part for one in examples for part in one.parts if len(part[2])]
    if sum(len(part[2]) for part in parts) < MIN_GROUPS:
        return None
    lightgbm = applications("lightgbm")
    values, bought, groups = (np.concatenate(column) for column in zip(*parts, strict=True))
    data = lightgbm.Dataset(values, bought.astype(int), group=groups, free_raw_data=False)
    settings = PARAMETERS | SIZES[repeat] | {"num_threads": threads}
    settings["min_data_in_leaf"] = max(20, int(LEAF_SHARE[repeat] * len(values)))
    seeds = range(seed * SEEDS, seed * SEEDS + num_seeds)
    boosters = [lightgbm.train(settings | {"seed": one}, data, ROUNDS[repeat]) for one in seeds]
    return Ranker(boosters, threads=threads)


def ranked(
    ranker: Ranker, past: Histories, methods: Methods, scores: Scores, allowed: np.ndarray, *, repeat: bool
) -> np.ndarray:
    """Scores of all products, float32 ``(B, I)``; -inf for those that are no candidates."""
    row, product = candidates(past, scores, allowed, repeat=repeat)
    found = np.full((past.num_shoppers, methods.num_products), -np.inf, np.float32)
    if len(row):
        found[row, product] = ranker(features(past, methods, scores, row, product))
    return found
