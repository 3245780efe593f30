"""Sales by product and day, from a table of sales or from purchases."""

import fnmatch
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config.shop import InteractionsSection, SalesSection
from retailray.data.columns import require
from retailray.data.interactions import (
    BAD_ROWS,
    DAY_S,
    MAX_BAD_ROWS,
    MEMORY,
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


class Sales:
    """``days``: a row for each product and day with any sale: ``product`` (number) ``, day`` (since 1970)
    ``, quantity, returned, price, promotion`` (share of the rows) ``, stock_out, rows``; ``products``: names by
    number; ``counts``, ``bad_rows``: see :class:`Interactions`."""

    def __init__(self, days: pa.Table, products: Names, counts: Counter[str], bad_rows: pa.Table, column: str) -> None:
        self.days, self.products, self.counts, self.bad_rows, self.column = days, products, counts, bad_rows, column


def read_sales(section: SalesSection, interactions: InteractionsSection) -> Sales:
    """Read ``sales.uri``, or sum ``interactions.uri`` up (of rows without quantity each is one unit).

    Raises:
        CatalogError: a table or column is not there, or no row is a sale.
    """
    if section.uri is None:
        return _of_interactions(interactions)
    products, counts = Names(), Counter[str]()
    bad: list[dict[str, object]] = []
    zone = zone_of(section.time_zone, "sales.time_zone")
    with duckdb.connect(config={"memory_limit": MEMORY}) as db:
        db.execute(
            "create table sale (product integer, day bigint, quantity double, price double, promotion double, "
            "stock_out boolean)"
        )
        for file in table_files(section.uri) or [section.uri]:
            for records in stream_records(file, encoding="utf-8"):
                if records.table.num_rows:
                    rows = _rows(section, file, records, products, counts, bad, zone)
                    db.register("piece", rows)
                    db.execute("insert into sale select * from piece")
                    db.unregister("piece")
        days = db.sql(_BY_DAY).to_arrow_table()
    if not days.num_rows:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "it has no rows"
        raise CatalogError(f"sales.uri = {section.uri}: no row is a sale ({told})")
    counts["duplicate_days"] = int((days.column("rows").to_numpy() - 1).sum())
    return Sales(days, products, counts, pa.Table.from_pylist(bad, BAD_ROWS), section.product)


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
        return Sales(days, found.products, found.counts, found.bad_table(), section.product)


def _rows(  # many because counts and bad rows are gathered beside the rows
    section: SalesSection,
    file: str,
    records: Records,
    products: Names,
    counts: Counter[str],
    bad: list[dict[str, object]],
    zone: object,
) -> pa.Table:
    table = records.table
    for key in ("product", "date", "quantity", "price", "promotion", "stock_out"):
        if name := getattr(section, key):
            require(table, name, f"sales.{key}", file)
    seconds, day_ok = seconds_of(table.column(section.date), zone)  # type: ignore[arg-type]
    try:
        product = products.encode(table.column(section.product), untyped=records.untyped)
    except TypeError as error:
        raise CatalogError(f"{file}: sales.product: {error}") from error
    quantity, quantity_ok = numbers_of(table, section.quantity)
    price, price_ok = numbers_of(table, section.price)
    promoted, promoted_ok = _flags(table, section.promotion)
    out, out_ok = _flags(table, section.stock_out)
    problems = {
        "bad_line": np.isin(np.arange(table.num_rows), list(records.faults)),
        "no_product": product < 0,
        "bad_time": ~day_ok,
        "bad_quantity": ~quantity_ok | np.isnan(quantity),
        "bad_price": ~price_ok | (price < 0),
        "bad_flag": ~promoted_ok | ~out_ok,
    }
    seen = np.zeros(table.num_rows, bool)
    columns = {"no_product": section.product, "bad_time": section.date, "bad_quantity": section.quantity}
    columns |= {"bad_price": section.price or "", "bad_flag": section.promotion or section.stock_out or ""}
    for code, wrong in problems.items():
        new = np.flatnonzero(wrong & ~seen)
        seen |= wrong
        counts[code] += len(new)
        for at in new[: MAX_BAD_ROWS - len(bad)].tolist():
            name = columns.get(code, "")
            told = records.faults.get(at) or f"{name} = {table.column(name)[at].as_py()!r:.80}"
            bad.append({"file": file, "row": int(records.lines[at]), "error_code": code, "message": told})
    names = products.texts()
    excluded = [
        number
        for number in np.unique(product[product >= 0]).tolist()
        if any(fnmatch.fnmatchcase(names[number], pattern) for pattern in section.exclude)
    ]
    left_out = np.isin(product, excluded) & ~seen
    counts["rows"] += table.num_rows
    counts["excluded"] += int(left_out.sum())
    found = {"product": product, "day": seconds // DAY_S, "quantity": quantity, "price": price}
    found |= {"promotion": promoted, "stock_out": out == 1}
    return pa.table(found).filter(~seen & ~left_out)


def _flags(table: pa.Table, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``(N,)`` of 0 and 1, NaN where nothing is given; whether what is given is one of the two."""
    if name is None:
        return np.full(table.num_rows, np.nan), np.ones(table.num_rows, bool)
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(table.column(name), pa.string()))).to_pylist()
    known = {"true": 1.0, "1": 1.0, "yes": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "no": 0.0, "0.0": 0.0}
    values = np.array([known.get(text, np.nan) if text else np.nan for text in texts])
    return values, np.array([not text or text in known for text in texts])
