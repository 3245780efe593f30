"""What purchases say of products with pictures: who buys them, what is bought with them, how much in each period."""

import dataclasses

import numpy as np
import pyarrow as pa

from retailray.data.interactions import Interactions

MIN_TOGETHER = 5  # baskets with both products, of which fewer are chance
_BOUGHT = "(quantity > 0 or isnan(quantity))"
_UNITS = "case when isnan(quantity) then 1 else quantity end"
PERIOD = {"D": "day", "W": "week", "M": "month"}  # DuckDB's weeks begin on Monday, as those of `forecast`


@dataclasses.dataclass(frozen=True)
class Together:
    """A product that is bought with another one. ``product``: number; ``baskets`` with both; ``lift``: how many times
    as often as if the two had nothing to do with each other."""

    product: int
    baskets: int
    lift: float


def most_bought(interactions: Interactions, pictured: np.ndarray, num: int, end: int) -> pa.Table:
    """At most ``num`` of the products (numbers) that are in most baskets before ``end`` (seconds), in this order.

    Columns: ``product, buyers, baskets, units`` (of rows without a quantity: 1 each) ``, money`` (null: no value is
    given). Returns are left out.
    """
    _register(interactions, "pictured", pictured)
    return interactions.table(
        "select product, count(distinct shopper) as buyers, count(distinct (shopper, basket)) as baskets, "
        f"sum({_UNITS}) as units, sum(value) filter (isfinite(value)) as money from event "
        f"join pictured using (product) where {_BOUGHT} and time < {end} group by product "
        f"order by baskets desc, product limit {num}"
    )


def bought_together(
    interactions: Interactions, pictured: np.ndarray, shown: np.ndarray, num: int, end: int
) -> dict[int, list[Together]]:
    """For each product of ``shown`` at most ``num`` others with pictures, those that tell most first: share of the
    baskets times the logarithm of the lift."""
    _register(interactions, "pictured", pictured)
    _register(interactions, "shown", shown)
    interactions.db.execute(
        "create or replace temp table line as select distinct shopper, basket, product from event "
        f"join pictured using (product) where {_BOUGHT} and time < {end}"
    )
    total = interactions.one(
        f"select count(distinct (shopper, basket)) from event where {_BOUGHT} and product >= 0 and time < {end}"
    )
    rows = interactions.table(
        "with baskets as (select product, count(*) as num from line group by product), "
        "pair as (select one.product as product, line.product as other, count(*) as num from line as one "
        "join shown on one.product = shown.product join line using (shopper, basket) "
        f"where one.product != line.product group by one.product, line.product having count(*) >= {MIN_TOGETHER}) "
        "select pair.product as product, other, pair.num as num, mine.num as mine, theirs.num as theirs from pair "
        "join baskets as mine on pair.product = mine.product join baskets as theirs on other = theirs.product"
    )
    product, other, both, mine, theirs = (rows.column(at).to_numpy() for at in range(5))
    lift = both * total / (mine * theirs)
    worth = both / mine * np.log(lift)
    found: dict[int, list[Together]] = {}
    for at in np.lexsort((other, -worth, product)).tolist():
        others = found.setdefault(int(product[at]), [])
        if lift[at] > 1 and len(others) < num:
            others.append(Together(int(other[at]), int(both[at]), float(lift[at])))
    return found


def buyers_by_segment(interactions: Interactions, segment: np.ndarray, shown: np.ndarray, end: int) -> np.ndarray:
    """Distinct buyers before ``end`` by product and segment, int64 ``(P, segments)``.

    Args:
        segment: by number of the shopper, -1: in none.
    """
    _register(interactions, "shown", shown)
    interactions.db.register("of_segment", pa.table({"shopper": np.arange(len(segment)), "segment": segment}))
    rows = interactions.table(
        "select product, segment, count(distinct shopper) as buyers from event join shown using (product) "
        f"join of_segment using (shopper) where segment >= 0 and {_BOUGHT} and time < {end} group by product, segment"
    )
    interactions.db.unregister("of_segment")
    found = np.zeros((len(shown), int(segment.max(initial=-1)) + 1), np.int64)
    place = np.argsort(shown)
    row = place[np.searchsorted(shown[place], rows.column("product").to_numpy())]
    found[row, rows.column("segment").to_numpy()] = rows.column("buyers").to_numpy()
    return found


def sold_by_period(interactions: Interactions, shown: np.ndarray, frequency: str, end: int) -> pa.Table:
    """``product, start`` (first day of a period with rows) ``, units`` (less those returned, at least 0)."""
    _register(interactions, "shown", shown)
    start = f"cast(date_trunc('{PERIOD[frequency]}', make_timestamp(time * 1000000)) as date)"
    return interactions.table(
        f"select product, {start} as start, greatest(sum({_UNITS}), 0) as units from event join shown using (product) "
        f"where time < {end} group by product, start order by product, start"
    )


def _register(interactions: Interactions, name: str, products: np.ndarray) -> None:
    interactions.db.register(name, pa.table({"product": np.unique(products).astype(np.int32)}))
