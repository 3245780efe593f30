"""Figures of every shopper, cohorts and categories, by SQL over the table of purchases."""

import numpy as np
import pyarrow as pa

from retailray.data.interactions import DAY_S, Interactions

FAVOURITES = 3


def figures(interactions: Interactions, end: int) -> pa.Table:
    """A row per shopper with any row before ``end`` (seconds): ``shopper`` (number) ``, recency_days`` (from the day of
    the last row to that of ``end``) ``, baskets, money`` (sum of all values, of returns too; null: none is given)."""
    return interactions.table(
        f"select shopper, {end // DAY_S} - max(time // {DAY_S}) as recency_days, count(distinct basket) as baskets, "
        f"sum(value) filter (isfinite(value)) as money from event where time < {end} group by shopper order by shopper"
    )


def bought(interactions: Interactions, end: int) -> pa.Table:
    """``shopper, product`` (numbers) ``, times`` (baskets with it), in the order of shoppers."""
    return interactions.table(
        "select shopper, product, count(distinct basket) as times from event where product >= 0 and "
        f"(quantity > 0 or isnan(quantity)) and time < {end} group by shopper, product order by shopper, product"
    )


def retention(interactions: Interactions, end: int) -> pa.Table:
    """``cohort`` (month of the first row) ``, month`` (since then, from 0) ``, shoppers`` of the cohort, ``active``."""
    month = "date_trunc('month', make_timestamp(time * 1000000))"
    return interactions.table(
        f"with active as (select distinct shopper, {month} as during from event where time < {end}), "
        "first as (select shopper, min(during) as cohort from active group by shopper), "
        "size as (select cohort, count(*) as shoppers from first group by cohort) "
        "select cast(cohort as date) as cohort, cast(date_diff('month', cohort, during) as integer) as month, "
        "any_value(shoppers) as shoppers, count(*) as active from active join first using (shopper) "
        "join size using (cohort) group by cohort, month, during order by cohort, month"
    )


def favourites(rows: pa.Table, category: np.ndarray, names: list[str]) -> dict[int, list[str]]:
    """The categories that each shopper buys most, at most :data:`FAVOURITES`, by number of the shopper.

    Args:
        rows: :func:`bought`. category: number of each product's category; -1: none is known.
    """
    shopper, product, times = (rows.column(name).to_numpy() for name in ("shopper", "product", "times"))
    kind = category[product]
    known = kind >= 0
    keys, where = np.unique(np.stack([shopper[known], kind[known]], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(where.ravel(), times[known], minlength=len(keys))
    found: dict[int, list[str]] = {}
    for at in np.lexsort((keys[:, 1], -counts, keys[:, 0])).tolist():
        mine = found.setdefault(int(keys[at, 0]), [])
        if len(mine) < FAVOURITES:
            mine.append(names[keys[at, 1]])
    return found


def demand(rows: pa.Table, category: np.ndarray, names: list[str]) -> pa.Table:
    """``category, products`` (that were bought) ``, supply`` (their share of all such products) ``, purchases, demand``
    (their share of all purchases) ``, ratio`` (of the two), the most wanted first."""
    product, times = rows.column("product").to_numpy(), rows.column("times").to_numpy()
    there = np.unique(product)
    kind = category[product]
    purchases = np.bincount(kind[kind >= 0], times[kind >= 0], minlength=len(names))
    offered = np.bincount(category[there][category[there] >= 0], minlength=len(names))
    keep = offered > 0
    supply, wanted = offered / max(1, offered.sum()), purchases / max(1.0, purchases.sum())
    found = pa.table(
        {
            "category": np.array(names, object)[keep],
            "products": offered[keep],
            "supply": supply[keep],
            "purchases": purchases[keep].astype(np.int64),
            "demand": wanted[keep],
            "ratio": wanted[keep] / supply[keep],
        }
    )
    return found.sort_by([("ratio", "descending"), ("category", "ascending")])
