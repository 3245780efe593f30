"""Recommendations for some shoppers at a time, by fitted methods."""

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retailray.recommendation.histories import HALF_LIVES, Histories, histories, purchases_of
from retailray.recommendation.measures import best
from retailray.recommendation.methods import TIE, Methods, Scores
from retailray.recommendation.ranker import ranked
from retailray.recommendation.state import Fitted, read_fitted

if TYPE_CHECKING:
    from retailray.events import Reporter

BATCH_SHOPPERS = 256
MANY = "bought by many"
OWN, ALIKE, TOGETHER, CONTENT, POPULAR = "own", "alike", "together", "content", "popular"


@dataclasses.dataclass(frozen=True)
class Wish:
    """``allowed``: bool ``(I,)``; ``sold``: bool ``(I,)``, what anybody has bought until now; ``unsold``: places for
    products that nobody has bought; ``as_of``: days since 1970; see :class:`RecommendSection` for the others."""

    allowed: np.ndarray
    sold: np.ndarray
    k: int
    repeat: bool
    unsold: int
    as_of: float


class Recommender:
    """An actor: a table with a row per shopper to ``shopper, product`` (numbers) ``, rank, score, reason``."""

    def __init__(self, *, address: str, wish: Wish, threads: int, reporter: "Reporter") -> None:
        self.fitted, self.wish, self.reporter = read_fitted(address, threads=threads), wish, reporter

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.monotonic()
        found = recommend_to(table, self.fitted, self.wish)
        self.reporter.spend({"predict": time.monotonic() - started})
        self.reporter.step(table.num_rows)
        return found


def recommend_to(table: pa.Table, fitted: Fitted, wish: Wish) -> pa.Table:
    """See :class:`Recommender`.

    Args:
        table: ``shopper``; ``reference``: the row of the shopper among those that others are compared with, -1: none;
            and lists ``products, days, baskets``.
    """
    methods = fitted.methods
    past = histories(purchases_of(table), methods.num_products, wish.as_of)
    scores = methods.scores(past, table.column("reference").to_numpy())
    bought = past.bought()
    allowed = wish.allowed & methods.sold
    if fitted.ranker is not None:
        main = ranked(fitted.ranker, past, methods, scores, allowed, repeat=wish.repeat)
        # what is no candidate comes after all candidates, by the method that needs no training
        main = np.where(np.isfinite(main), main, scores["own_and_neighbours"] - BELOW)
    else:
        main = scores[fitted.method]
    shown = allowed & (np.ones_like(bought) if wish.repeat else ~bought)
    chosen = best(np.where(shown, main, -np.inf), wish.k)
    values = np.take_along_axis(main, np.maximum(chosen, 0), axis=1)
    values = np.where(chosen >= 0, values, np.nan)
    if wish.unsold and methods.pictures is not None:
        chosen, values = _with_unsold(chosen, values, scores["content"], methods, wish)
    row, rank = np.nonzero(chosen >= 0)
    product = chosen[row, rank]
    return pa.table(
        {
            "shopper": table.column("shopper").to_numpy()[row],
            "product": product.astype(np.int32),
            "rank": (rank + 1).astype(np.int32),
            "score": values[row, rank].astype(np.float32),
            "reason": pa.array(reasons(past, methods, scores, fitted, row, product, wish.as_of), pa.string()),
        }
    )


BELOW = 100.0  # more than any ranker's score is below the best


def _with_unsold(
    chosen: np.ndarray, values: np.ndarray, content: np.ndarray, methods: Methods, wish: Wish
) -> tuple[np.ndarray, np.ndarray]:
    """The last places given to unsold products that look most like what the shopper bought."""
    assert methods.pictures is not None
    new = wish.allowed & ~wish.sold & ~methods.sold & methods.pictures.any(1)
    found = best(np.where(new & (content > 0), content, -np.inf), min(wish.unsold, wish.k))
    likeness = np.take_along_axis(content, np.maximum(found, 0), axis=1)
    both = np.full((len(chosen), wish.k), -1)
    of_both = np.full((len(chosen), wish.k), np.nan, np.float32)
    for row in range(len(chosen)):
        there = found[row] >= 0
        others = chosen[row][chosen[row] >= 0][: wish.k - there.sum()]
        num = len(others) + there.sum()
        both[row, :num] = np.append(others, found[row][there])
        of_both[row, :num] = np.append(values[row, : len(others)], likeness[row][there])
    return both, of_both


def reasons(  # many because a reason is of a pair, and of what every method says of it
    past: Histories,
    methods: Methods,
    scores: Scores,
    fitted: Fitted,
    row: np.ndarray,
    product: np.ndarray,
    as_of: float,
) -> list[str]:
    """Why each product was recommended: the shopper's own purchases, else what speaks for it most."""
    at = past.find(row, product)
    names = {ALIKE: "neighbours_recent", TOGETHER: "together", CONTENT: "content", POPULAR: "popularity_28"}
    there = {kind: scores[name][row, product] for kind, name in names.items() if name in scores}
    kinds, values = list(there), np.stack(list(there.values()))
    # what speaks for a product with no more than its popularity is its popularity
    popular = kinds.index(POPULAR)
    strongest = np.where(values.max(0) > 2 * TIE, values.argmax(0), popular) if values.size else np.zeros(0, int)
    unsold = ~methods.sold[product]
    found = []
    matrix = past.matrix(past.decayed[HALF_LIVES[2]])
    for number, (shopper, item) in enumerate(zip(row.tolist(), product.tolist(), strict=True)):
        kind = CONTENT if unsold[number] else OWN if at[number] >= 0 else kinds[strongest[number]]
        if kind == OWN:
            day = np.datetime64("1970-01-01") + int(as_of - past.last[at[number]])
            times = int(past.count[at[number]])
            found.append(f"bought {times} time{'s' if times > 1 else ''}, last on {day}")
        elif kind in (TOGETHER, CONTENT):
            mine = matrix.indices[matrix.indptr[shopper] : matrix.indptr[shopper + 1]]
            found.append(_because(kind, fitted, mine, item))
        else:
            found.append({ALIKE: "shoppers with similar baskets buy it", POPULAR: MANY}[kind])
    return found


def _because(kind: str, fitted: Fitted, mine: np.ndarray, item: int) -> str:
    """Which of the shopper's products a product goes with, or looks like, most."""
    methods = fitted.methods
    if not len(mine):
        return MANY
    if kind == TOGETHER:
        links = np.asarray(methods.together[mine][:, [item]].todense()).ravel()
        return f"bought by those who buy {fitted.products[mine[links.argmax()]]}"
    assert methods.pictures is not None
    return f"looks like {fitted.products[mine[(methods.pictures[mine] @ methods.pictures[item]).argmax()]]}"
