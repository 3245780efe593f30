"""Read a catalog file of any of the formats people have into an Arrow table, losing nothing.

CSV has no types: a column becomes integer or floating only where that is lossless in form, so that ``00012`` and
``1e5-b`` stay text. The columns that mean something to us (image, id, label, group, split) always stay text.
"""

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from retailray import storage
from retailray.errors import CatalogError

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")
COMPRESSIONS = {".gz": gzip.decompress, ".bz2": bz2.decompress}
_INTEGER = r"^(-?(0|[1-9][0-9]{0,17}))?$"
# up to 15 digits, which a float64 holds exactly; no exponents, because article numbers look like them (12E4)
_DECIMAL = r"^(-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)?$"


def table_suffix(address: str) -> str | None:
    """The format of a table by its name (``.csv`` of ``a.csv.gz``); None if it is no table."""
    name = address.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file of a table."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_table(address: str, *, encoding: str) -> pa.Table:
    """Read one file. Text columns of CSV and TSV are all strings; see :func:`with_lossless_types`.

    Raises:
        CatalogError: not readable as what its name says; the message names the line and the value.
        StorageError: not reachable.
    """
    suffix = table_suffix(address)
    if suffix is None:
        raise CatalogError(f"{address}: unknown kind of table; names end in {', '.join(SUFFIXES)} (and .gz, .bz2)")
    data = storage.read_bytes(address)
    for ending, decompress in COMPRESSIONS.items():
        if address.lower().endswith(ending):
            try:
                data = decompress(data)
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise CatalogError(f"{address}: not {ending} data ({error})") from error
    if not data.strip():
        raise CatalogError(f"{address}: the file is empty")
    if suffix in (".parquet", ".pq"):
        return _read_parquet(address, data)
    text = _decode(address, data, encoding).replace("\r\n", "\n").replace("\r", "\n")
    table = _read_jsonl(address, text) if suffix in (".jsonl", ".ndjson") else _read_csv(address, text, suffix)
    if table.num_rows == 0:
        raise CatalogError(f"{address}: there is a header and no rows")
    return table


def _read_parquet(address: str, data: bytes) -> pa.Table:
    try:
        table = pa.parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{address}: not a Parquet file ({' '.join(str(error).split())})") from error
    if table.num_rows == 0:
        raise CatalogError(f"{address}: the table has no rows")
    return table


def _decode(address: str, data: bytes, encoding: str) -> str:
    try:
        return data.decode("utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding)
    except LookupError as error:
        raise CatalogError(f"catalog.encoding = {encoding!r}: no such encoding; try utf-8 or latin-1") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CatalogError(
            f"{address}: line {line}: byte 0x{data[error.start]:02x} is not {encoding}; "
            "set catalog.encoding (latin-1 and cp1252 are common) or save the file as utf-8"
        ) from error


def _read_csv(address: str, text: str, suffix: str) -> pa.Table:
    header_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;\t|", key=header_line.count)
    try:
        names = next(csv.reader(io.StringIO(header_line), delimiter=delimiter))
    except csv.Error as error:
        raise CatalogError(f"{address}: line 1: not a CSV header ({error})") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogError(f"{address}: line 1: column names occur twice: {', '.join(map(repr, twice))}")
    bad: list[str] = []

    def note_bad_row(row: pyarrow.csv.InvalidRow) -> str:
        bad.append(f"line {row.number}: {row.actual_columns} values where the header has {row.expected_columns}")
        return "skip"

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=pa.csv.ReadOptions(use_threads=False),  # the row handler is told line numbers only so
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note_bad_row
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        raise CatalogError(f"{address}: {' '.join(str(error).split())}") from error
    if bad:
        more = f" (and {len(bad) - 3} more lines)" if len(bad) > 3 else ""
        raise CatalogError(f"{address}: {'; '.join(bad[:3])}{more}; quote values that contain {delimiter!r}")
    return table


def _read_jsonl(address: str, text: str) -> pa.Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CatalogError(f"{address}: line {number}: not JSON ({error.msg}): {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise CatalogError(f"{address}: line {number}: a JSON object is expected: {line[:80]!r}")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
            raise CatalogError(f"{address}: column {name!r} mixes types or holds values of none ({error})") from error
    return pa.table(columns)


def with_lossless_types(table: pa.Table, *, keep_text: Iterable[str]) -> pa.Table:
    """Turn text columns of a CSV into int64 or float64 where every value is written as such a number."""
    keep = set(keep_text)
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if field.name in keep or not pa.types.is_string(field.type) or pc.all(pc.equal(column, "")).as_py():
            continue
        for pattern, kind in ((_INTEGER, pa.int64()), (_DECIMAL, pa.float64())):
            if pc.all(pc.match_substring_regex(column, pattern)).as_py():
                numbers = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column).cast(kind)
                table = table.set_column(index, field.name, numbers)
                break
    return table


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as the names they are: null and NaN become '', 1.0 (pandas' integer with gaps) becomes '1'."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if pc.all(pc.equal(pc.floor(column), column), skip_nulls=True).as_py():
            column = column.cast(pa.int64())
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise TypeError(f"a column of type {column.type} cannot be used as text")
    return pc.fill_null(column.cast(pa.string()), "")
