"""Purchases, read a piece at a time onto this machine's disk, and asked for in any order."""

import tempfile
import zoneinfo
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events
from retailray.config.shop import InteractionsSection
from retailray.data.bad_rows import BadRows, named_by, warn_of_patterns
from retailray.data.columns import require
from retailray.data.names import Names
from retailray.data.records import Records
from retailray.data.tables import stream_records, table_files
from retailray.errors import CatalogError, ConfigError

DAY_S = 86_400
YEARS = (1900, 2100)  # of other ones, 9999-12-31 among them, programs say that there is no date
_OFFSET = r"\d\d:\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)\s*$"  # Z, +01, +0100, +01:00 after a time
MEMORY = "1GB"  # of the database; what does not fit is on the disk


class Interactions:
    """A table ``event`` of ``shopper, product`` (numbers; product -1: none is named) ``, time`` (seconds since 1970 by
    the shop's clock) ``, basket, quantity, value`` (NaN: none is given), and the ``shoppers`` and ``products`` that
    the numbers mean.

    ``bad``: rows that cannot be used, and counts.
    """

    def __init__(self, section: InteractionsSection, *, by_shopper: bool = True) -> None:
        self.section, self.by_shopper = section, by_shopper
        self.shoppers, self.products = Names(), Names()
        self.bad = BadRows()
        self._folder = tempfile.TemporaryDirectory(prefix="retailray-interactions-")
        options: dict[str, Any] = {"memory_limit": MEMORY, "temp_directory": str(Path(self._folder.name, "spill"))}
        self.db = duckdb.connect(str(Path(self._folder.name, "interactions.duckdb")), config=options)
        self.db.execute(
            "create table event (shopper integer, product integer, time bigint, basket bigint, quantity double, "
            "value double)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.db.close()
        self._folder.cleanup()

    @property
    def first(self) -> pd.Timestamp:
        return pd.Timestamp(self.one("select min(time) from event"), unit="s")

    @property
    def last(self) -> pd.Timestamp:
        return pd.Timestamp(self.one("select max(time) from event"), unit="s")

    def day_after(self) -> pd.Timestamp:
        """The first day without any row; a warning where that lies in the future."""
        warn_of_future(self.last)
        return self.last.normalize() + pd.Timedelta("1D")

    def one(self, query: str) -> int:
        [(value,)] = self.db.execute(query).fetchall()
        return int(value)

    def table(self, query: str) -> pa.Table:
        return self.db.sql(query).to_arrow_table()

    def pieces(self, query: str, rows: int = 1_000_000) -> Iterator[pa.Table]:
        """The rows of a query, some at a time."""
        with self.db.cursor() as cursor:
            for batch in cursor.sql(query).to_arrow_reader(rows):
                yield pa.Table.from_batches([batch])

    def facts(self) -> dict[str, object]:
        """For ``run.json``."""
        return {
            "uri": self.section.uri,
            "shoppers": len(self.shoppers),
            "products": len(self.products),
            "first": str(self.first),
            "last": str(self.last),
            **self.bad.counts,
        }


def warn_of_future(last: pd.Timestamp) -> None:
    """A warning where the last row is of a later day than tomorrow."""
    if last >= pd.Timestamp.now().normalize() + pd.Timedelta("2D"):
        events.emit("warning", note=f"the last row is of {last}, in the future; as_of says where to stop")


def read_interactions(section: InteractionsSection, *, by_shopper: bool = True) -> Interactions:
    """Read a table of purchases. Rows without shopper or with an unreadable value are counted, and listed as bad rows.

    Args:
        by_shopper: False: nobody asks whose purchases they are, and a table without shoppers will do.

    Raises:
        CatalogError: the table or a column is not there, or no row is left.
    """
    zone = zone_of(section.time_zone, "interactions.time_zone")
    assert section.uri, "the config asks for it"
    found = Interactions(section, by_shopper=by_shopper)
    try:
        for file in table_files(section.uri) or [section.uri]:
            for records in stream_records(file, encoding="utf-8"):
                if records.table.num_rows:
                    _take(found, file, records, zone)
        warn_of_patterns("interactions.exclude", section.exclude, found.products)
        found.bad.warn(section.uri)
        if not found.one("select count(*) from event"):
            raise CatalogError(f"interactions.uri = {section.uri}: no row is a purchase ({_told(found.bad.counts)})")
    except BaseException:
        found.__exit__(None, None, None)
        raise
    return found


def zone_of(name: str, key: str) -> zoneinfo.ZoneInfo:
    """A time zone that the setting ``key`` names. Raises ConfigError."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError([f"{key} = {name!r}: there is no such time zone"]) from error


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "it has no rows"


def _take(found: Interactions, file: str, records: Records, zone: zoneinfo.ZoneInfo) -> None:
    section, table = found.section, records.table
    of_shoppers = ("shopper", "basket") if found.by_shopper else ()
    for key in ("product", "time", *of_shoppers, "quantity", "value"):
        if name := getattr(section, key):
            require(table, name, f"interactions.{key}", file)
    seconds, time_ok = seconds_of(table.column(section.time), zone)
    shopper, product = _encoded(found, file, records)
    quantity, quantity_ok = numbers_of(table, section.quantity)
    value, value_ok = numbers_of(table, section.value)
    problems = {
        "no_shopper": (shopper < 0, section.shopper),
        "bad_time": (~time_ok, section.time),
        "bad_quantity": (~quantity_ok, section.quantity),
        "bad_value": (~value_ok, section.value),
    }
    bad = found.bad.note(file, records, problems)
    left_out = named_by(section.exclude, found.products, product) & ~bad
    kept = ~bad & ~left_out
    found.bad.counts["rows"] += table.num_rows
    found.bad.counts["excluded"] += int(left_out.sum())
    found.bad.counts["no_product"] += int((kept & (product < 0)).sum())
    if section.quantity:
        found.bad.counts["without_quantity"] += int((kept & np.isnan(quantity)).sum())  # one unit each
    found.bad.counts["not_bought"] += int((kept & (quantity <= 0)).sum())
    baskets = _baskets(table, section.basket if found.by_shopper else None, seconds)
    columns = {"shopper": shopper, "product": product, "time": seconds, "basket": baskets}
    rows = pa.table(columns | {"quantity": quantity, "value": value}).filter(kept)
    found.db.register("piece", rows)
    found.db.execute("insert into event select * from piece")
    found.db.unregister("piece")


def _encoded(found: Interactions, file: str, records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of shoppers and products, int32 ``(N,)``."""
    section, table = found.section, records.table
    everybody = pa.chunked_array([np.zeros(table.num_rows, np.int8)])
    shoppers = table.column(section.shopper) if found.by_shopper else everybody
    try:
        shopper = found.shoppers.encode(shoppers, untyped=records.untyped)
        return shopper, found.products.encode(table.column(section.product), untyped=records.untyped)
    except TypeError as error:
        raise CatalogError(f"{file}: interactions.shopper, interactions.product: {error}") from error


def numbers_of(table: pa.Table, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """float64 ``(N,)``, NaN where nothing is given, and whether what is given is a finite number."""
    if name is None:
        return np.full(table.num_rows, np.nan), np.ones(table.num_rows, bool)
    column = table.column(name)
    given = pc.is_valid(column).to_numpy(zero_copy_only=False)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = pc.utf8_trim_whitespace(column)
        given &= pc.fill_null(pc.not_equal(texts, ""), False).to_numpy(zero_copy_only=False)
        values = pd.to_numeric(texts.to_pandas(), errors="coerce").to_numpy(np.float64)
    else:
        values = column.to_pandas().astype(np.float64).to_numpy()
        given &= ~np.isnan(values)  # of programs that write NaN for nothing
    return np.where(given, values, np.nan), ~given | np.isfinite(values)


def _baskets(table: pa.Table, name: str | None, seconds: np.ndarray) -> np.ndarray:
    """A number for each basket of a shopper, int64."""
    days = -1 - seconds // DAY_S
    if name is None:
        return days
    texts = pc.fill_null(pc.cast(table.column(name), pa.string()), "").to_pandas().astype(object)
    return np.where(texts == "", days, pd.util.hash_array(texts.to_numpy()).view(np.int64))


def seconds_of(column: pa.ChunkedArray, zone: zoneinfo.ZoneInfo) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 by the clock of a time zone, int64 ``(N,)``, and whether there is a time at all."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = pd.Series(pd.to_datetime(column.to_pandas(), errors="coerce"))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = _numbered(column.to_pandas().astype(np.float64), zone)
    else:
        texts = pc.cast(column, pa.string()).to_pandas().astype(object)
        numeric = pd.to_numeric(texts, errors="coerce")
        times = _written(texts.where(numeric.isna()), zone)
        if numeric.notna().any():
            times = times.where(numeric.isna(), _numbered(numeric, zone))
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        times = times.dt.tz_convert(zone).dt.tz_localize(None)
    good = (times.dt.year.between(*YEARS) if len(times) else times.notna()).to_numpy()
    return times.to_numpy("datetime64[s]").astype(np.int64), good


def _written(texts: pd.Series, zone: zoneinfo.ZoneInfo) -> pd.Series:
    """ISO 8601, each with or without an offset; what has one is converted to the zone."""
    aware = texts.str.contains(_OFFSET, regex=True).fillna(False).astype(bool)
    plain = pd.to_datetime(texts.where(~aware), errors="coerce", format="ISO8601")
    if not aware.any():
        return plain
    told = texts.where(aware).str.upper()
    converted = pd.to_datetime(told, errors="coerce", format="ISO8601", utc=True)
    return plain.where(~aware, converted.dt.tz_convert(zone).dt.tz_localize(None))


def _numbered(values: pd.Series, zone: zoneinfo.ZoneInfo) -> pd.Series:
    """20171204, or seconds or milliseconds since 1970 in UTC, by their size."""
    whole = values.where(values == values.round())
    days = pd.to_datetime(whole.where(whole.between(19000101, 21001231)).astype("Int64").astype("string"),
                          format="%Y%m%d", errors="coerce").astype("datetime64[ns]")  # fmt: skip
    seconds = pd.to_datetime(values.where(values.between(1e8, 1e10)), unit="s", errors="coerce")
    millis = pd.to_datetime(values.where(values.between(1e11, 1e13)), unit="ms", errors="coerce")
    moments = seconds.fillna(millis).dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
    return days.fillna(moments)


def timestamp(day: str, key: str) -> pd.Timestamp:
    """A day that a setting names. Raises ConfigError."""
    try:
        found = pd.Timestamp(day)
    except ValueError as error:
        raise ConfigError([f"{key} = {day!r} is no day; write it as YYYY-MM-DD"]) from error
    if pd.isna(found) or found.tz is not None or found != found.normalize():
        raise ConfigError([f"{key} = {day!r} is no day; write it as YYYY-MM-DD"])
    return found
