"""What shoppers have bought, as arrays."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

HALF_LIVES = (14, 28, 56, 112, 224)  # days after which a purchase counts half
RECENT_DAYS = 56


@dataclasses.dataclass(frozen=True)
class Purchases:
    """A product in a basket each, by shopper: ``owner`` (row of the shopper, ascending), ``product``, int64 ``(N,)``;
    ``day``: float64, days since 1970; ``basket``: int64."""

    owner: np.ndarray
    product: np.ndarray
    day: np.ndarray
    basket: np.ndarray
    num_shoppers: int

    def between(self, first: float, end: float) -> "Purchases":
        """Those from one day on and before another."""
        keep = (self.day >= first) & (self.day < end)
        return Purchases(self.owner[keep], self.product[keep], self.day[keep], self.basket[keep], self.num_shoppers)


def purchases_of(table: pa.Table) -> Purchases:
    """Of a table with one row per shopper: lists ``products``, ``days``, ``baskets`` of equal lengths."""
    lists = table.column("products").combine_chunks()
    offsets = lists.offsets.to_numpy()
    owner = np.repeat(np.arange(table.num_rows), np.diff(offsets))

    def values(name: str) -> np.ndarray:
        return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)

    return Purchases(
        owner,
        values("products").astype(np.int64),
        values("days").astype(np.float64),
        values("baskets").astype(np.int64),
        table.num_rows,
    )


@dataclasses.dataclass(frozen=True)
class Histories:
    """Products that each of B shoppers bought before a day, a row per pair in the order of ``keys`` (shopper times
    number of products, plus product): how often, how many days ago first and last, and decayed by half-life.

    ``baskets``, ``recent_baskets``: of the shoppers, int64 ``(B,)``.
    """

    keys: np.ndarray
    count: np.ndarray
    last: np.ndarray
    first: np.ndarray
    decayed: dict[int, np.ndarray]
    baskets: np.ndarray
    recent_baskets: np.ndarray
    num_products: int

    @property
    def num_shoppers(self) -> int:
        return len(self.baskets)

    @functools.cached_property
    def owner(self) -> np.ndarray:
        return self.keys // self.num_products

    @functools.cached_property
    def product(self) -> np.ndarray:
        return self.keys % self.num_products

    def matrix(self, values: np.ndarray) -> sp.csr_matrix:
        """``(B, number of products)`` of one value per pair."""
        bounds = np.searchsorted(self.owner, np.arange(self.num_shoppers + 1))
        shape = (self.num_shoppers, self.num_products)
        return sp.csr_matrix((values.astype(np.float32), self.product, bounds), shape=shape)

    def bought(self) -> np.ndarray:
        """bool ``(B, number of products)``."""
        found = np.zeros((self.num_shoppers, self.num_products), bool)
        found[self.owner, self.product] = True
        return found

    def find(self, owner: np.ndarray, product: np.ndarray) -> np.ndarray:
        """Rows of pairs, int64; -1 where the shopper has not bought the product."""
        if not len(self.keys):
            return np.full(len(owner), -1)
        wanted = owner * self.num_products + product
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, at, -1)


def histories(purchases: Purchases, num_products: int, as_of: float) -> Histories:
    """Of purchases before ``as_of`` [days since 1970]."""
    past = purchases.between(-np.inf, as_of)
    keys = past.owner * num_products + past.product
    order = np.argsort(keys, kind="stable")
    keys, age = keys[order], (as_of - past.day)[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    if not len(keys):
        none = np.zeros(0)
        empty = dict.fromkeys(HALF_LIVES, none)
        zeros = np.zeros(purchases.num_shoppers, np.int64)
        return Histories(keys, none, none, none, empty, zeros, zeros, num_products)
    decayed = {half: np.add.reduceat(0.5 ** (age / half), starts) for half in HALF_LIVES}
    recent = past.between(as_of - RECENT_DAYS, as_of)
    return Histories(
        keys[starts],
        np.diff(starts, append=len(keys)).astype(float),
        np.minimum.reduceat(age, starts),
        np.maximum.reduceat(age, starts),
        decayed,
        _num_baskets(past),
        _num_baskets(recent),
        num_products,
    )


def _num_baskets(purchases: Purchases) -> np.ndarray:
    pairs = np.unique(np.stack([purchases.owner, purchases.basket], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=purchases.num_shoppers)
