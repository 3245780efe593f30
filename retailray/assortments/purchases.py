"""What purchases say of products with pictures: who buys them, what is bought with them."""

import dataclasses

import numpy as np
import pyarrow as pa

from retailray.data.interactions import Interactions

MIN_TOGETHER = 5  # baskets with both products, of which fewer are chance
_BOUGHT = "(quantity > 0 or isnan(quantity))"
_UNITS = "case when isnan(quantity) then 1 else quantity end"


@dataclasses.dataclass(frozen=True)
class Together:
    """A product that is bought with another one. ``product``: name; ``baskets`` with both; ``lift``: how many times
    as often as by chance."""

    product: str
    baskets: int
    lift: float


def most_bought(
    everything: Interactions, pictured: list[str], num: int, end: int
) -> dict[str, tuple[float, float | None]]:
    """Units (of rows without a quantity: 1 each) and money (None: no value is given) of at most ``num`` products, by
    name, those with most purchases before ``end`` (seconds) first. Returns are left out, guests are not."""
    _register(everything, "pictured", everything.products.find(pictured))
    rows = everything.table(
        f"select product, sum({_UNITS}) as units, sum(value) filter (isfinite(value)) as money from event "
        f"join pictured using (product) where {_BOUGHT} and time < {end} group by product "
        f"order by count(*) desc, product limit {num}"
    )
    names = everything.products.texts()
    return {names[row["product"]]: (row["units"], row["money"]) for row in rows.to_pylist()}


def buyers_of(known: Interactions, shown: list[str], end: int) -> dict[str, tuple[int, int]]:
    """Distinct shoppers and baskets, by name of the product."""
    _register(known, "shown", known.products.find(shown))
    rows = known.table(
        "select product, count(distinct shopper) as buyers, count(distinct (shopper, basket)) as baskets from event "
        f"join shown using (product) where {_BOUGHT} and time < {end} group by product"
    )
    names = known.products.texts()
    return {names[row["product"]]: (row["buyers"], row["baskets"]) for row in rows.to_pylist()}


def bought_together(
    known: Interactions, pictured: list[str], shown: list[str], num: int, end: int
) -> dict[str, list[Together]]:
    """For each product of ``shown`` at most ``num`` others with pictures and a lift above 1, those that tell most
    first: share of the baskets times the logarithm of the lift."""
    _register(known, "pictured", known.products.find(pictured))
    _register(known, "shown", known.products.find(shown))
    known.db.execute(
        "create or replace temp table line as select distinct shopper, basket, product from event "
        f"join pictured using (product) where {_BOUGHT} and time < {end}"
    )
    total = known.one(
        f"select count(distinct (shopper, basket)) from event where {_BOUGHT} and product >= 0 and time < {end}"
    )
    rows = known.table(
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
    names, found = known.products.texts(), dict[str, list[Together]]()
    for at in np.lexsort((other, -worth, product)).tolist():
        others = found.setdefault(names[product[at]], [])
        if lift[at] > 1 and len(others) < num:
            others.append(Together(names[other[at]], int(both[at]), float(lift[at])))
    return found


def buyers_by_segment(known: Interactions, segment: np.ndarray, shown: list[str], end: int) -> dict[str, np.ndarray]:
    """Distinct buyers before ``end`` by segment, int64 ``(segments,)``, by name of the product.

    Args:
        segment: by number of the shopper, -1: in none.
    """
    _register(known, "shown", known.products.find(shown))
    known.db.register("of_segment", pa.table({"shopper": np.arange(len(segment)), "segment": segment}))
    rows = known.table(
        "select product, segment, count(distinct shopper) as buyers from event join shown using (product) "
        f"join of_segment using (shopper) where segment >= 0 and {_BOUGHT} and time < {end} group by product, segment"
    )
    known.db.unregister("of_segment")
    names, found = known.products.texts(), dict[str, np.ndarray]()
    for row in rows.to_pylist():
        empty = np.zeros(int(segment.max(initial=-1)) + 1, np.int64)
        found.setdefault(names[row["product"]], empty)[row["segment"]] = row["buyers"]
    return found


def _register(purchases: Interactions, name: str, products: np.ndarray) -> None:
    there = np.unique(products[products >= 0])
    purchases.db.register(name, pa.table({"product": there.astype(np.int32)}))
