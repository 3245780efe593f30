"""Read a catalog file of any of the formats people have into Arrow tables, a piece at a time, losing nothing.

CSV has no types: a column becomes integer or floating only where that is lossless in form, so that ``00012`` and
``1e5-b`` stay text. The columns that mean something to us (image, id, label, group, split) always stay text.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from retailray import storage
from retailray.errors import CatalogError

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")
COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
PIECE_ROWS = 20_000
_PIECE_BYTES = 8 << 20  # of text; one row may not be longer
_INTEGER = r"^(-?(0|[1-9][0-9]{0,17}))?$"
# up to 15 digits, which a float64 holds exactly; no exponents, because article numbers look like them (12E4)
_DECIMAL = r"^(-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)?$"


def table_suffix(address: str) -> str | None:
    """The format of a table by its name (``.csv`` of ``a.csv.gz``); None if it is no table."""
    name = address.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def visible_files(uri: str) -> list[str]:
    """Files below a folder, without what runs of ours left there and what is hidden."""

    def visible(name: str) -> bool:
        parts = name[len(uri) :].split("/")  # hidden folders too: .ipynb_checkpoints, _temporary, _delta_log
        return not any(part.startswith(("_", ".", "run_id=")) for part in parts)

    return list(filter(visible, storage.list_files(uri)))


def table_files(uri: str) -> list[str]:
    """The tables that an address names: itself, those of a pattern, or those below a folder; none where it has none.

    Raises:
        CatalogError: a pattern matches no table. StorageError: the address cannot be reached.
    """
    fs, path = storage.filesystem(uri)
    if fsspec.core.has_magic(path) and not storage.exists(uri):
        names = sorted(storage.guarded(uri, lambda: fs.glob(path)))
        found = [fs.unstrip_protocol(name) if storage.is_uri(uri) else name for name in names]
        if not any(map(table_suffix, found)):
            raise CatalogError(f"{uri}: the pattern matches no table")
        return [name for name in found if table_suffix(name)]
    if storage.guarded(uri, lambda: fs.isfile(path)):
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


def read_table(address: str, *, encoding: str) -> pa.Table:
    """One file as one table; see :func:`stream_table`."""
    return pa.concat_tables(stream_table(address, encoding=encoding))


def stream_table(address: str, *, encoding: str, may_be_empty: bool = False) -> Iterator[pa.Table]:
    """One file as tables of one schema and some :data:`PIECE_ROWS` rows each, so that memory does not grow with it.

    Text columns of CSV and TSV are all strings; see :class:`LosslessTypes`.

    Raises:
        CatalogError: not readable as what its name says; the message names the line and the value.
        StorageError: not reachable.
    """
    suffix = table_suffix(address)
    if suffix is None:
        raise CatalogError(f"{address}: unknown kind of table; names end in {', '.join(SUFFIXES)} (and .gz, .bz2)")
    if suffix in (".parquet", ".pq"):
        pieces = _stream_parquet(address)
    elif suffix in (".jsonl", ".ndjson"):
        pieces = _stream_jsonl(address, encoding)
    else:
        pieces = _stream_csv(address, suffix, encoding)
    num_rows = 0
    for piece in pieces:
        num_rows += piece.num_rows
        yield piece
    if num_rows == 0 and not may_be_empty:
        raise CatalogError(f"{address}: there is a header and no rows")


@contextlib.contextmanager
def _opened(address: str) -> Iterator[Any]:
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


class _Utf8(io.RawIOBase):
    """A text file in any encoding and with any line ends, read as UTF-8 with line feeds."""

    def __init__(self, address: str, file: Any, encoding: str) -> None:
        try:
            codec = codecs.lookup("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
        except LookupError as error:
            raise CatalogError(f"catalog.encoding = {encoding!r}: no such encoding; try utf-8 or latin-1") from error
        self._address, self._file, self._encoding = address, file, encoding
        self._decoder = io.IncrementalNewlineDecoder(codec.incrementaldecoder(), translate=True)
        self._left = memoryview(b"")
        self._lines = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        at_end = False
        while not self._left and not at_end:
            data = self._file.read(1 << 20)
            at_end = not data
            self._left = memoryview(self._decode(data, final=at_end).encode())
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decode(self, data: bytes, *, final: bool) -> str:
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            line = self._lines + error.object[: error.start].count(b"\n")
            raise CatalogError(
                f"{self._address}: line {line}: byte 0x{error.object[error.start]:02x} is not {self._encoding}; "
                "set catalog.encoding (latin-1 and cp1252 are common) or save the file as utf-8"
            ) from error
        self._lines += text.count("\n")
        return text


@contextlib.contextmanager
def _text(address: str, encoding: str) -> Iterator[Any]:
    with _opened(address) as plain:
        text = io.BufferedReader(_Utf8(address, plain, encoding), 1 << 20)
        if not text.peek(1):
            raise CatalogError(f"{address}: the file is empty")
        yield text


def _stream_parquet(address: str) -> Iterator[pa.Table]:
    with _opened(address) as file:
        try:
            # one column chunk after the other and not a row group in advance: row groups can be as large as the file
            source = pa.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            for batch in source.iter_batches(PIECE_ROWS):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{address}: not a Parquet file ({' '.join(str(error).split())})") from error


def _stream_csv(address: str, suffix: str, encoding: str) -> Iterator[pa.Table]:
    with _text(address, encoding) as text:
        header, skipped = _csv_header(address, text)
        delimiter = "\t" if suffix == ".tsv" else max(",;\t|", key=header.count)
        names = _column_names(address, header, delimiter)
        bad: list[str] = []

        def note_bad_row(row: pyarrow.csv.InvalidRow) -> str:
            at = row.number + skipped if row.number else None
            bad.append(f"line {at}: {row.actual_columns} values where the header has {row.expected_columns}")
            return "skip"

        try:
            reader = pa.csv.open_csv(
                text,
                # the row handler is told line numbers only without threads
                read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, block_size=_PIECE_BYTES),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note_bad_row
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
            for batch in reader:
                for start in range(0, batch.num_rows, PIECE_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, PIECE_ROWS)])
        except pa.ArrowException as error:
            if "Empty CSV" not in str(error):
                raise CatalogError(f"{address}: {' '.join(str(error).split())}") from error
        if bad:
            more = f" (and {len(bad) - 3} more lines)" if len(bad) > 3 else ""
            raise CatalogError(f"{address}: {'; '.join(bad[:3])}{more}; quote values that contain {delimiter!r}")


def _csv_header(address: str, text: Any) -> tuple[str, int]:
    """The first line that is not empty (and those that its quotes run over), and how many lines that took."""
    header, lines = "", 0
    while not header.strip() or header.count('"') % 2:
        line = text.readline(_PIECE_BYTES).decode()
        if not line:
            break
        header, lines = (header if header.strip() else "") + line, lines + 1
    if not header.strip():
        raise CatalogError(f"{address}: the file is empty")
    return header.removesuffix("\n"), lines


def _column_names(address: str, header: str, delimiter: str) -> list[str]:
    try:
        names = next(csv.reader(io.StringIO(header, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise CatalogError(f"{address}: line 1: not a CSV header ({error})") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogError(f"{address}: line 1: column names occur twice: {', '.join(map(repr, twice))}")
    return names


def _stream_jsonl(address: str, encoding: str) -> Iterator[pa.Table]:
    """Two readings where there are several pieces: the first learns the types of all of them."""
    schemas: list[pa.Schema] = []
    only: pa.Table | None = None
    for rows in _json_pieces(address, encoding):
        only = _json_table(address, rows)
        schemas.append(only.schema)
        if len(schemas) > 1:
            try:
                schemas = [pa.unify_schemas(schemas, promote_options="permissive")]
            except pa.ArrowException as error:
                raise CatalogError(f"{address}: a column mixes types ({error})") from error
            only = None
    if only is not None and len(schemas) == 1 and only.schema == schemas[0]:
        yield only
        return
    for rows in _json_pieces(address, encoding):
        yield _json_table(address, rows, schemas[0])


def _json_pieces(address: str, encoding: str) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
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
            if len(rows) == PIECE_ROWS:
                yield rows
                rows = []
    if rows:
        yield rows


def _json_table(address: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows], schema.field(name).type if schema else None)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
            raise CatalogError(f"{address}: column {name!r} mixes types or holds values of none ({error})") from error
    return pa.table(columns)


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
