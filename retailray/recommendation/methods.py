"""Ways to score products for shoppers. Each gives a number for every shopper and product; the higher, the better.

* ``popularity``: shoppers who bought it in the last 14, 28 or 84 days, or ever.
* ``own_purchases``: the shopper's own purchases, which count half after 14 to 224 days, or all alike.
* ``neighbours``: purchases of the shoppers with the most similar baskets (TIFU-kNN, Hu et al., SIGIR 2020); `recent`:
  similar in what they bought lately; `ever`: in what they ever bought, rare products counting more.
* ``own_and_neighbours``: seven parts of the first and three of the second.
* ``together``: products that are bought by those who buy what the shopper bought (cosine, by implicit).
* ``als``: matrix factorisation (Hu, Koren, Volinsky, ICDM 2008, by implicit).
* ``content``: pictures like those of what the shopper bought.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp

from retailray.interrupts import applications
from retailray.recommendation.histories import HALF_LIVES, Histories, Purchases, histories

WINDOWS = {"14": 14.0, "28": 28.0, "84": 84.0, "ever": np.inf}
NEIGHBOURS = {"recent": 100, "ever": 200}
HALF_LIFE = 56  # of what neighbours and pictures are compared by
OWN_SHARE = 0.7
TOGETHER = 100  # products that are kept for each
FACTORS, REGULARIZATION, ITERATIONS = 64, 0.05, 15
TIE = 1e-6  # of the most popular product: products of equal score are in the order of popularity
Scores = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Methods:
    """What the methods know of a day: ``popularity`` float32 ``(I,)`` by window; of reference shoppers, ``compared``
    (rows of length 1) and ``votes`` by kind of neighbours; ``together`` ``(I, I)``; ``factors`` float32 ``(I, F)`` or
    None; ``pictures``: float32 ``(I, D)`` of length 1, 0 where there is none, or None."""

    popularity: dict[str, np.ndarray]
    compared: dict[str, sp.csr_matrix]
    votes: dict[str, sp.csr_matrix]
    rarity: np.ndarray
    together: sp.csr_matrix
    factors: np.ndarray | None
    pictures: np.ndarray | None

    @property
    def num_products(self) -> int:
        return len(self.rarity)

    @property
    def sold(self) -> np.ndarray:
        return self.popularity["ever"] > 0

    def scores(self, past: Histories, own_rows: np.ndarray | None = None) -> Scores:
        """float32 ``(B, I)`` by method. ``own_rows``: which reference shoppers these are, -1: none."""
        ties = TIE * self.popularity["ever"] / max(1.0, self.popularity["ever"].max())
        alike = {kind: self._neighbours(past, kind, own_rows) for kind in NEIGHBOURS}
        found = {f"neighbours_{kind}": values for kind, values in alike.items()}
        own = {str(half): past.decayed[half] for half in HALF_LIVES} | {"ever": past.count}
        for name, values in own.items():
            found[f"own_purchases_{name}"] = past.matrix(values).toarray()
        found["own_and_neighbours"] = (
            OWN_SHARE * _of_largest(found["own_purchases_112"]) + (1 - OWN_SHARE) * alike["recent"]
        )
        found["together"] = (past.matrix(np.log1p(past.count)) @ self.together).toarray()
        if self.factors is not None:
            found["als"] = self._als(past)
        if self.pictures is not None:
            found["content"] = self.profiles(past) @ self.pictures.T
        found = {name: _of_largest(values) + ties for name, values in found.items()}
        shape = (past.num_shoppers, self.num_products)
        return found | {
            f"popularity_{name}": np.broadcast_to(values / max(1.0, values.max()) + ties, shape)
            for name, values in self.popularity.items()
        }

    def profiles(self, past: Histories) -> np.ndarray:
        """The mean picture of what each shopper bought, float32 ``(B, D)`` of length 1 or 0."""
        assert self.pictures is not None
        found = past.matrix(past.decayed[HALF_LIFE]) @ self.pictures
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    def _neighbours(self, past: Histories, kind: str, own_rows: np.ndarray | None) -> np.ndarray:
        num = self.compared[kind].shape[0]
        if not num:
            return np.zeros((past.num_shoppers, self.num_products), np.float32)
        alike = (_compared(past, self.rarity)[kind] @ self.compared[kind].T).toarray()
        if own_rows is not None:
            rows = np.flatnonzero(own_rows >= 0)
            alike[rows, own_rows[rows]] = 0
        k = min(NEIGHBOURS[kind], num)
        nearest = np.argpartition(-alike, k - 1, axis=1)[:, :k]
        weights = np.take_along_axis(alike, nearest, axis=1)
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-9)
        bounds = np.arange(past.num_shoppers + 1) * k
        chosen = sp.csr_matrix((weights.ravel(), nearest.ravel(), bounds), shape=(past.num_shoppers, num))
        return (chosen @ self.votes[kind]).toarray()

    def _als(self, past: Histories) -> np.ndarray:
        assert self.factors is not None
        with _one_thread():
            model = _als_model(self.factors.shape[1])
            model.item_factors = self.factors
            users = model.recalculate_user(np.arange(past.num_shoppers), past.matrix(past.count))
        return users.reshape(past.num_shoppers, -1) @ self.factors.T


def fit_methods(
    reference: Purchases, popularity: dict[str, np.ndarray], as_of: float, *, pictures: np.ndarray | None
) -> Methods:
    """What reference shoppers bought before a day. ``popularity``: of all shoppers, by window."""
    num_products = len(popularity["ever"])
    past = histories(reference, num_products, as_of)
    buyers = np.bincount(past.product, minlength=num_products)
    rarity = np.log((1 + past.num_shoppers) / (1 + buyers)).astype(np.float32)
    recent = past.matrix(past.decayed[HALF_LIFE])
    votes = {"recent": _of_largest_sparse(recent), "ever": past.matrix(np.ones(len(past.keys)))}
    return Methods(
        popularity,
        _compared(past, rarity),
        votes,
        rarity,
        _together(past),
        _factors(past),
        pictures,
    )


def popularity_of(purchases: Purchases, num_products: int, as_of: float) -> dict[str, np.ndarray]:
    """Baskets with each product, float32 ``(I,)`` by window."""
    found = {}
    for name, days in WINDOWS.items():
        part = purchases.between(as_of - days, as_of)
        found[name] = np.bincount(part.product, minlength=num_products).astype(np.float32)
    return found


def _compared(past: Histories, rarity: np.ndarray) -> dict[str, sp.csr_matrix]:
    """What shoppers are compared by, rows of length 1."""
    rare = past.matrix(np.log1p(past.count)) @ sp.diags(rarity).tocsr()
    return {"recent": _unit(past.matrix(past.decayed[HALF_LIFE])), "ever": _unit(rare.tocsr())}


def _unit(matrix: sp.csr_matrix) -> sp.csr_matrix:
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return (sp.diags(1 / np.maximum(lengths, 1e-9)) @ matrix).tocsr().astype(np.float32)


def _of_largest(values: np.ndarray) -> np.ndarray:
    """Each row as shares of its largest value."""
    return values / np.maximum(values.max(1, keepdims=True), 1e-9)


def _of_largest_sparse(matrix: sp.csr_matrix) -> sp.csr_matrix:
    largest = np.asarray(matrix.max(1).todense()).ravel()
    return (sp.diags(1 / np.maximum(largest, 1e-9)) @ matrix).tocsr().astype(np.float32)


def _together(past: Histories) -> sp.csr_matrix:
    if not len(past.keys):
        return sp.csr_matrix((past.num_products, past.num_products), dtype=np.float32)
    implicit = applications("implicit.nearest_neighbours")
    model = implicit.CosineRecommender(K=min(TOGETHER, past.num_products), num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it converts its own matrix, and says so to those who call it
        model.fit(past.matrix(np.log1p(past.count)), show_progress=False)
    return model.similarity.tocsr().astype(np.float32)


def _factors(past: Histories) -> np.ndarray | None:
    factors = min(FACTORS, past.num_shoppers, past.num_products)
    if not len(past.keys) or factors < 2:
        return None
    with _one_thread():
        model = _als_model(factors)
        model.fit(past.matrix(past.count), show_progress=False)
    return np.asarray(model.item_factors, np.float32)


def _one_thread() -> Any:
    """implicit asks for it: its own threads do the work."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(1, "blas")


def _als_model(factors: int) -> Any:
    implicit = applications("implicit.als")
    return implicit.AlternatingLeastSquares(
        factors, regularization=REGULARIZATION, iterations=ITERATIONS, random_state=0, num_threads=1
    )
