"""Figures of every shopper, cohorts and categories, by SQL over the table of purchases."""

import numpy as np
import pyarrow as pa

from retailray.data.interactions import DAY_S, Interactions
from retailray.data.product_table import Categories

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
        "size as (select cohort, count(*) as shoppers from first group by cohort), "
        "during as (select cohort, date_diff('month', cohort, during) as since, count(*) as active from active "
        "join first using (shopper) group by cohort, during), "
        "months as (select cohort, shoppers, unnest(range(0, "
        f"date_diff('month', cohort, make_timestamp({(end - 1) * 1_000_000})) + 1)) as since from size) "
        "select cast(cohort as date) as cohort, cast(since as integer) as month, shoppers, "
        "coalesce(active, 0) as active from months left join during using (cohort, since) order by cohort, month"
    )


def favourites(rows: pa.Table, categories: Categories) -> dict[int, list[str]]:
    """The categories that each shopper buys most, at most :data:`FAVOURITES`, by number of the shopper.

    Args:
        rows: :func:`bought`.
    """
    shopper, product, times = (rows.column(name).to_numpy() for name in ("shopper", "product", "times"))
    kind = categories.of[product]
    known = kind >= 0
    keys, where = np.unique(np.stack([shopper[known], kind[known]], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(where.ravel(), times[known], minlength=len(keys))
    found: dict[int, list[str]] = {}
    for at in np.lexsort((keys[:, 1], -counts, keys[:, 0])).tolist():
        mine = found.setdefault(int(keys[at, 0]), [])
        if len(mine) < FAVOURITES:
            mine.append(categories.names[keys[at, 1]])
    return found


def demand(rows: pa.Table, categories: Categories) -> pa.Table:
    """``category, products`` (of the table of products) ``, supply`` (their share) ``, purchases, demand`` (their share
    of all purchases) ``, ratio`` (of the two), the most wanted first."""
    kind, times = categories.of[rows.column("product").to_numpy()], rows.column("times").to_numpy()
    purchases = np.bincount(kind[kind >= 0], times[kind >= 0], minlength=len(categories.names))
    supply = categories.offered / max(1, categories.offered.sum())
    wanted = purchases / max(1.0, purchases.sum())
    found = pa.table(
        {
            "category": pa.array(categories.names, pa.string()),
            "products": categories.offered,
            "supply": supply,
            "purchases": purchases.astype(np.int64),
            "demand": wanted,
            "ratio": wanted / supply,
        }
    )
    return found.sort_by([("ratio", "descending"), ("category", "ascending")])


def paid_returns(interactions: Interactions, end: int) -> int:
    """Rows that return something and have a value above 0, which the money of a shopper then goes up by."""
    return interactions.one(f"select count(*) from event where quantity < 0 and value > 0 and time < {end}")
