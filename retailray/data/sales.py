"""Sales by product and day, from a table of sales or from purchases."""

import zoneinfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config.shop import InteractionsSection, SalesSection
from retailray.data.bad_rows import BadRows, named_by
from retailray.data.columns import require
from retailray.data.interactions import DAY_S, MEMORY, numbers_of, read_interactions, seconds_of, zone_of
from retailray.data.names import Names
from retailray.data.records import Records
from retailray.data.tables import stream_records, table_files
from retailray.errors import CatalogError

_BY_DAY = """
    select product, day, sum(quantity) as quantity, sum(quantity) filter (quantity < 0) as returned,
        sum(price * quantity) filter (quantity > 0 and isfinite(price)) /
            nullif(sum(quantity) filter (quantity > 0 and isfinite(price)), 0) as price,
        avg(promotion) as promotion, bool_or(stock_out) as stock_out, count(*) as rows
    from sale group by product, day order by product, day
"""


class Sales:
    """``days``: a row for each product and day with any sale: ``product`` (number) ``, day`` (since 1970)
    ``, quantity, returned, price, promotion`` (share of the rows) ``, stock_out, rows``; ``products``: names by
    number; ``bad``: rows that cannot be used, and counts; ``column``: the user's name of the products."""

    def __init__(self, days: pa.Table, products: Names, bad: BadRows, column: str) -> None:
        self.days, self.products, self.bad, self.column = days, products, bad, column


def read_sales(section: SalesSection, interactions: InteractionsSection) -> Sales:
    """Read ``sales.uri``, or sum ``interactions.uri`` up (of rows without quantity each is one unit).

    Raises:
        CatalogError: a table or column is not there, or no row is a sale.
    """
    if section.uri is None:
        return _of_interactions(interactions)
    products, bad = Names(), BadRows()
    zone = zone_of(section.time_zone, "sales.time_zone")
    with duckdb.connect(config={"memory_limit": MEMORY}) as db:
        db.execute(
            "create table sale (product integer, day bigint, quantity double, price double, promotion double, "
            "stock_out boolean)"
        )
        for file in table_files(section.uri) or [section.uri]:
            for records in stream_records(file, encoding="utf-8"):
                if records.table.num_rows:
                    rows = _rows(section, file, records, products, bad, zone)
                    db.register("piece", rows)
                    db.execute("insert into sale select * from piece")
                    db.unregister("piece")
        days = db.sql(_BY_DAY).to_arrow_table()
    if not days.num_rows:
        told = ", ".join(f"{name}: {count}" for name, count in bad.counts.items()) or "it has no rows"
        raise CatalogError(f"sales.uri = {section.uri}: no row is a sale ({told})")
    bad.counts["duplicate_days"] = int((days.column("rows").to_numpy() - 1).sum())
    return Sales(days, products, bad, section.product)


def _of_interactions(section: InteractionsSection) -> Sales:
    with read_interactions(section, by_shopper=False) as found:
        found.db.execute(
            f"create view sale as select product, time // {DAY_S} as day, "
            "case when isnan(quantity) then 1 else quantity end as quantity, "
            "case when quantity > 0 then value / quantity end as price, null::double as promotion, "
            "false as stock_out from event where product >= 0"
        )
        days = found.table(_BY_DAY)
        if not days.num_rows:
            raise CatalogError(f"interactions.uri = {section.uri}: no row names a product")
        return Sales(days, found.products, found.bad, section.product)


def _rows(  # many because counts and bad rows are gathered beside the rows
    section: SalesSection, file: str, records: Records, products: Names, bad: BadRows, zone: zoneinfo.ZoneInfo
) -> pa.Table:
    table = records.table
    for key in ("product", "date", "quantity", "price", "promotion", "stock_out"):
        if name := getattr(section, key):
            require(table, name, f"sales.{key}", file)
    seconds, day_ok = seconds_of(table.column(section.date), zone)
    try:
        product = products.encode(table.column(section.product), untyped=records.untyped)
    except TypeError as error:
        raise CatalogError(f"{file}: sales.product: {error}") from error
    quantity, quantity_ok = numbers_of(table, section.quantity)
    price, price_ok = numbers_of(table, section.price)
    promoted, promoted_ok = _flags(table, section.promotion)
    out, out_ok = _flags(table, section.stock_out)
    problems = {
        "no_product": (product < 0, section.product),
        "bad_time": (~day_ok, section.date),
        "bad_quantity": (~quantity_ok | np.isnan(quantity), section.quantity),
        "bad_price": (~price_ok | (price < 0), section.price),
        "bad_promotion": (~promoted_ok, section.promotion),
        "bad_stock_out": (~out_ok, section.stock_out),
    }
    wrong = bad.note(file, records, problems)
    left_out = named_by(section.exclude, products, product) & ~wrong
    bad.counts["rows"] += table.num_rows
    bad.counts["excluded"] += int(left_out.sum())
    found = {"product": product, "day": seconds // DAY_S, "quantity": quantity, "price": price}
    found |= {"promotion": promoted, "stock_out": out == 1}
    return pa.table(found).filter(~wrong & ~left_out)


def _flags(table: pa.Table, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``(N,)`` of 0 and 1, NaN where nothing is given; whether what is given is one of the two."""
    if name is None:
        return np.full(table.num_rows, np.nan), np.ones(table.num_rows, bool)
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(table.column(name), pa.string()))).to_pylist()
    known = {"true": 1.0, "1": 1.0, "yes": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "no": 0.0, "0.0": 0.0}
    values = np.array([known.get(text, np.nan) if text else np.nan for text in texts])
    return values, np.array([not text or text in known for text in texts])
