"""Read a catalog file of any of the formats people have into Arrow tables, a piece at a time, losing nothing.

CSV has no types: a column becomes integer or floating only where that is lossless in form, so that ``00012`` and
``1e5-b`` stay text. The columns that mean something to us (image, id, label, group, split) always stay text.
"""

import bz2
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from retailray import storage
from retailray.data.csv_files import CsvOptions, CsvReader
from retailray.data.text_files import Utf8Reader
from retailray.errors import CatalogError

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")
COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
PIECE_ROWS = 20_000
_PIECE_BYTES, _PARQUET_BYTES = 8 << 20, 64 << 20  # of text; of Parquet, uncompressed
PLAIN_CSV = CsvOptions()
_INTEGER = r"^(-?(0|[1-9][0-9]{0,17}))?$"
# up to 15 digits, which a float64 holds exactly; no exponents, because article numbers look like them (12E4)
_DECIMAL = r"^(-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)?$"


def table_suffix(address: str) -> str | None:
    """The format of a table by its name (``.csv`` of ``a.csv.gz``); None if it is no table."""
    name = address.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def is_visible(folder: str, name: str) -> bool:
    """False for a file below a folder that runs of ours left there, or that is hidden."""
    parts = name[len(folder) :].split("/")  # hidden folders too: .ipynb_checkpoints, _temporary, _delta_log
    return not any(part.startswith(("_", ".", "run_id=")) for part in parts)


def visible_files(uri: str) -> list[str]:
    """Files below a folder, without what runs of ours left there and what is hidden."""
    return [name for name in storage.list_files(uri) if is_visible(uri, name)]


def table_files(uri: str) -> list[str]:
    """The tables that an address names: itself, those of a pattern, or those below a folder; none where it has none.

    Raises:
        CatalogError: a pattern matches no table. StorageError: the address cannot be reached.
    """
    fs, path = storage.filesystem(uri)
    if fsspec.core.has_magic(path) and not storage.exists(uri):
        names = sorted(storage.with_deadline(uri, lambda: fs.glob(path)))
        found = [fs.unstrip_protocol(name) if storage.is_uri(uri) else name for name in names]
        if not any(map(table_suffix, found)):
            raise CatalogError(f"{uri}: the pattern matches no table")
        return [name for name in found if table_suffix(name)]
    if storage.with_deadline(uri, lambda: fs.isfile(path)):
        return [uri]
    return sorted(name for name in visible_files(uri) if table_suffix(name))


def parquet_bytes(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """A Parquet file of a table."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=row_group_size, compression="zstd")
    return buffer.getvalue()


def rechunk(batches: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows, but for the last."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(batch)
        while sum(table.num_rows for table in held) >= rows:
            together = pa.concat_tables(held)
            yield together.slice(0, rows)
            held = [together.slice(rows)]
    if sum(table.num_rows for table in held):
        yield pa.concat_tables(held)


def gathered(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of many small ones of one schema, which are made between large blocks that come and go.

    They go into one buffer. Kept as they come, each would stand between such blocks in the heap, which then cannot be
    used again: 16,000 predictions of 8,000 labels took 2 GB.
    """
    sink, writer = pa.BufferOutputStream(), None
    for table in tables:
        writer = writer or pa.ipc.new_stream(sink, table.schema)
        writer.write_table(table)
    if not writer:
        raise ValueError("no tables")
    writer.close()
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def read_table(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> pa.Table:
    """One file as one table; see :func:`stream_table`."""
    return pa.concat_tables(stream_table(address, encoding=encoding, csv=csv))


def stream_table(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> Iterator[pa.Table]:
    """One file as tables of one schema and some :data:`PIECE_ROWS` rows each, so that memory does not grow with it.

    Text columns of CSV and TSV are all strings; see :class:`LosslessTypes`.

    Raises:
        CatalogError: not readable as what its name says, or it has no rows; the message names the line and the value.
        StorageError: not reachable.
    """
    num_rows = 0
    for table, _ in stream_lines(address, encoding=encoding, csv=csv):
        num_rows += table.num_rows
        yield table
    if num_rows == 0:
        raise CatalogError(f"{address}: there is a header and no rows")


def stream_lines(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The same, each table with the line on which each row begins, from 1, int64 ``(N,)`` (of Parquet: the row).

    A file without rows gives at most tables without rows.
    """
    suffix = table_suffix(address)
    if suffix is None:
        raise CatalogError(
            f"{address}: unknown table format; supported suffixes are {', '.join(SUFFIXES)} (and .gz, .bz2)"
        )
    if suffix in (".parquet", ".pq"):
        yield from _stream_parquet(address)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _stream_jsonl(address, encoding)
    else:
        yield from _stream_csv(address, suffix, encoding, csv)


@contextlib.contextmanager
def _opened(address: str) -> Iterator[object]:
    """The bytes of a file, decompressed by its name."""
    with storage.open_binary(address) as raw:
        decompressor = next((made for end, made in COMPRESSIONS.items() if address.lower().endswith(end)), None)
        if decompressor is None:
            yield raw
            return
        try:
            with decompressor(raw) as plain:
                yield plain
        except (OSError, EOFError, zlib.error) as error:  # what is wrong with the store comes as a StorageError
            raise CatalogError(f"{address}: not {address[address.rfind('.') :]} data ({error})") from error


@contextlib.contextmanager
def _text(address: str, encoding: str) -> Iterator[Any]:
    with _opened(address) as plain:
        text = io.BufferedReader(Utf8Reader(address, plain, encoding), 1 << 20)
        if not text.peek(1):
            raise CatalogError(f"{address}: the file is empty")
        yield text


def _stream_parquet(address: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    num_rows = 0
    with _opened(address) as file:
        try:
            # one column chunk after the other and not a row group in advance: row groups can be as large as the file
            source = pa.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            for batch in source.iter_batches(_rows_at_once(source.metadata)):
                yield pa.Table.from_batches([batch]), np.arange(num_rows + 1, num_rows + 1 + batch.num_rows)
                num_rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{address}: not a Parquet file ({' '.join(str(error).split())})") from error


def _rows_at_once(metadata: Any) -> int:
    """Rows that are read together: fewer where they are large, as those that hold images are."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return int(min(PIECE_ROWS, max(1, _PARQUET_BYTES // max(1, largest))))


def _stream_csv(address: str, suffix: str, encoding: str, options: CsvOptions) -> Iterator[tuple[pa.Table, np.ndarray]]:
    with _text(address, encoding) as text:
        reader = CsvReader(
            address, (line.decode() for line in text), options, delimiter="\t" if suffix == ".tsv" else None
        )
        rows: list[list[str]] = []
        lines: list[int] = []
        size = 0
        for found in reader:
            rows += found.values
            lines += found.lines
            size += found.size
            if len(rows) >= PIECE_ROWS or size > _PIECE_BYTES:
                yield _text_table(reader.names, rows), np.array(lines, dtype=np.int64)
                rows, lines, size = [], [], 0
        yield _text_table(reader.names, rows), np.array(lines, dtype=np.int64)


def _text_table(names: list[str], rows: list[list[str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=names)


def _stream_jsonl(address: str, encoding: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Two readings where there are several pieces: the first learns the types of all of them."""
    schemas: list[pa.Schema] = []
    only: tuple[pa.Table, np.ndarray] | None = None
    for rows, lines in _json_pieces(address, encoding):
        only = _json_table(address, rows, lines), lines
        schemas.append(only[0].schema)
        if len(schemas) > 1:
            try:
                schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
            except pa.ArrowException as error:
                raise CatalogError(f"{address}: a column mixes types ({error})") from error
            only = None
    if only is not None and len(schemas) == 1 and only[0].schema == schemas[0]:
        yield only
        return
    for rows, lines in _json_pieces(address, encoding):
        yield _json_table(address, rows, lines, schemas[0]), lines


def _json_pieces(address: str, encoding: str) -> Iterator[tuple[list[dict[str, object]], np.ndarray]]:
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    with _text(address, encoding) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            shown = line[:80].decode(errors="replace").rstrip("\n")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CatalogError(f"{address}: line {number}: not JSON ({error.msg}): {shown!r}") from error
            if not isinstance(row, dict):
                raise CatalogError(f"{address}: line {number}: a JSON object is expected: {shown!r}")
            rows.append(row)
            lines.append(number)
            if len(rows) == PIECE_ROWS:
                yield rows, np.array(lines, dtype=np.int64)
                rows, lines = [], []
    if rows:
        yield rows, np.array(lines, dtype=np.int64)


def _json_table(
    address: str, rows: list[dict[str, object]], lines: np.ndarray, schema: pa.Schema | None = None
) -> pa.Table:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows], schema.field(name).type if schema else None)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
            why = f"{_odd_line([row.get(name) for row in rows], lines)}{error}"
            raise CatalogError(f"{address}: column {name!r} mixes types or holds values of none ({why})") from error
    return pa.table(columns)


def _odd_line(values: list[object], lines: np.ndarray) -> str:
    """The first line whose value is of another type than those before it."""
    there = [(value, line) for value, line in zip(values, lines.tolist(), strict=True) if value is not None]
    kinds = [float if type(value) is int else type(value) for value, _ in there]
    for (value, line), kind in zip(there, kinds, strict=True):
        if kind is not kinds[0]:
            return f"line {there[0][1]} holds {there[0][0]!r:.60}, line {line} {value!r:.60}; "
    return ""


def unify_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return one schema for the parts of a table that differ in dictionaries, in large or null types, or in columns.

    Raises:
        pyarrow.ArrowException: a column has types that no type holds both of.
    """
    fields: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for field in schema:
            fields.setdefault(field.name, []).append(field)
    unified = []
    for name, members in fields.items():
        kinds = {str(field.type): field.type for field in members}
        plain = [pa.schema([(name, _plain(kind))]) for kind in kinds.values()] if len(kinds) > 1 else []
        kind = pa.unify_schemas(plain, promote_options="permissive").field(0).type if plain else members[0].type
        unified.append(pa.field(name, kind))
    return pa.schema(unified)


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without the ways in which writers pack it."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of :func:`unify_schemas`; those that it lacks are null."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        columns.append(column if column.type.equals(field.type) else column.cast(_plain(column.type)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


class LosslessTypes:
    """int64 or float64 for the text columns of a CSV in which every value is written as such a number.

    :meth:`look` at every piece, then :meth:`cast` each of them.
    """

    def __init__(self, keep_text: Iterable[str]) -> None:
        self._keep = set(keep_text)
        self._filled: set[str] = set()
        self._possible: dict[str, list[str]] = {}

    def look(self, table: pa.Table) -> None:
        for field, column in zip(table.schema, table.columns, strict=True):
            if field.name in self._keep or not pa.types.is_string(field.type):
                continue
            possible = self._possible.setdefault(field.name, [_INTEGER, _DECIMAL])
            possible[:] = [form for form in possible if pc.all(pc.match_substring_regex(column, form)).as_py()]
            if field.name not in self._filled and not pc.all(pc.equal(column, "")).as_py():
                self._filled.add(field.name)

    def cast(self, table: pa.Table) -> pa.Table:
        for index, name in enumerate(table.column_names):
            possible = self._possible.get(name)
            if possible and name in self._filled:
                column = table.column(index)
                numbers = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
                kind = pa.int64() if possible[0] == _INTEGER else pa.float64()
                table = table.set_column(index, name, numbers.cast(kind))
        return table


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as the names they are: null and NaN become '', 1.0 (pandas' integer with gaps) becomes '1'."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise TypeError(f"a column of type {column.type} cannot be used as text")
    text = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), 2.0**53))
        text = pc.if_else(whole, pc.if_else(whole, numbers, 0.0).cast(pa.int64()).cast(pa.string()), text)
        text = pc.if_else(pc.is_nan(numbers), "", text)
    return pc.fill_null(text, "")
