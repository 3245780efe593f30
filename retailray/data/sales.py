"""Sales by product and day, from a table of sales or from purchases."""

import dataclasses
import tempfile
import zoneinfo

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config.shop import InteractionsSection, SalesSection
from retailray.data.bad_rows import BadRows, named_by, warn_of_patterns
from retailray.data.columns import require
from retailray.data.interactions import (
    DAY_S,
    MEMORY,
    Interactions,
    numbers_of,
    read_interactions,
    seconds_of,
    zone_of,
)
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


@dataclasses.dataclass(frozen=True)
class Sales:
    """``days``: a row for each product and day with any row: ``product`` (number) ``, day`` (since 1970)
    ``, quantity, returned, price, promotion`` (share of the rows) ``, stock_out, rows``; ``names``: of the products by
    number; ``kind``: type of the user's ids; ``open``: days on which anything was sold or counted, ascending;
    ``bad``: rows that cannot be used, and counts; ``column``: the user's name of the products; ``exclude``: patterns.
    """

    days: pa.Table
    names: list[str]
    kind: pa.DataType
    open: np.ndarray
    bad: BadRows
    column: str
    exclude: list[str]

    def before(self, day: int) -> "Sales":
        """What was known before a day: products that had been sold until then, in the order of their names.

        Raises:
            CatalogError: nothing was sold.
        """
        rows = self.days.filter(pc.less(self.days.column("day"), day))
        sold = pc.greater(rows.column("quantity"), pc.fill_null(rows.column("returned"), 0.0))
        there = pc.unique(rows.column("product").filter(sold)).to_pylist()
        if not there:
            raise CatalogError(
                f"nothing was sold before {np.datetime64(day, 'D')}, the first day that is forecast (forecast.as_of, "
                "or the first day of the period of forecast.frequency that has not ended)"
            )
        there.sort(key=self.names.__getitem__)
        number = pc.index_in(rows.column("product"), value_set=pa.array(there, rows.schema.field("product").type))
        rows = rows.set_column(rows.schema.get_field_index("product"), "product", number)
        rows = rows.filter(pc.is_valid(number)).sort_by([("product", "ascending"), ("day", "ascending")])
        found = {"days": rows, "names": [self.names[one] for one in there], "open": self.open[self.open < day]}
        return dataclasses.replace(self, **found)


def _sales(days: pa.Table, products: Names, bad: BadRows, section: SalesSection | InteractionsSection) -> Sales:
    open_days = np.unique(days.column("day").to_numpy())
    return Sales(days, products.texts(), products.kind, open_days, bad, section.product, section.exclude)


def read_sales(section: SalesSection, interactions: InteractionsSection) -> Sales:
    """Read ``sales.uri``, or sum ``interactions.uri`` up (of rows without quantity each is one unit).

    Raises:
        CatalogError: a table or column is not there, or no row is a sale.
    """
    if section.uri is None:
        return _of_interactions(interactions)
    products, bad = Names(), BadRows()
    zone = zone_of(section.time_zone, "sales.time_zone")
    with (
        tempfile.TemporaryDirectory(prefix="retailray-sales-") as folder,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": folder}) as db,
    ):
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
    warn_of_patterns("sales.exclude", section.exclude, products)
    bad.warn(section.uri)
    return _sales(days, products, bad, section)


def _of_interactions(section: InteractionsSection) -> Sales:
    with read_interactions(section, by_shopper=False) as found:
        return sales_of(found)


def sales_of(purchases: Interactions) -> Sales:
    """Sums of a table of purchases, of which each row without quantity is one unit. Raises CatalogError."""
    purchases.db.execute(
        f"create or replace view sale as select product, time // {DAY_S} as day, "
        "case when isnan(quantity) then 1 else quantity end as quantity, "
        "case when quantity > 0 then value / quantity end as price, null::double as promotion, "
        "false as stock_out from event where product >= 0"
    )
    days = purchases.table(_BY_DAY)
    if not days.num_rows:
        raise CatalogError(f"interactions.uri = {purchases.section.uri}: no row names a product")
    return _sales(days, purchases.products, purchases.bad, purchases.section)


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
    promoted, promoted_ok = _shares(table, section.promotion)
    out, out_ok = _shares(table, section.stock_out)
    out_ok &= np.isnan(out) | (out == 0) | (out == 1)
    quantity = np.where(np.isnan(quantity) & (out == 1), 0.0, quantity)  # of what was not there nothing is counted
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


def _shares(table: pa.Table, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``(N,)``, 0 to 1 (false to true), NaN where nothing is given; whether what is given is such a value."""
    if name is None:
        return np.full(table.num_rows, np.nan), np.ones(table.num_rows, bool)
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(table.column(name), pa.string()))).to_pylist()
    known = {"true": "1", "yes": "1", "false": "0", "no": "0"}
    values = pd.to_numeric(pd.Series([known.get(text, text) if text else None for text in texts]), errors="coerce")
    found = values.to_numpy(np.float64)
    return found, np.array([not text for text in texts]) | ((found >= 0) & (found <= 1))
