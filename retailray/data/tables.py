"""Read a catalog file of any of the formats people have into Arrow tables, a piece at a time, losing nothing.

CSV has no types: a column becomes integer or floating only where that is lossless in form, so that ``00012`` and
``1e5-b`` stay text. The columns that mean something to us (image, id, label, group, split) always stay text.
"""

import glob
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from retailray import storage
from retailray.config.catalog import WHITESPACE
from retailray.data.csv_files import CsvOptions, CsvReader
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.json_documents import rows_of_document, stream_json_document
from retailray.data.json_lines import rows_of_lines, stream_json_lines
from retailray.data.records import Records
from retailray.data.text_files import COMPRESSIONS, MAX_LINE, PIECE_ROWS, opened, text_of
from retailray.data.webdataset import LOOKED_AT, columns_of_shard, is_shard, stream_shard
from retailray.data.xml_feeds import rows_of_feed, stream_xml
from retailray.errors import CatalogError

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".tar.gz", ".tar.bz2")
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
}
DOCUMENT_LISTS = {"images", "annotations", "products", "items", "data", "records", "rows", "results"}
_HEAD_BYTES = 1 << 16
_PIECE_BYTES, _PARQUET_BYTES = 8 << 20, 64 << 20  # of text; of Parquet, uncompressed
PLAIN_CSV = CsvOptions()


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

    Of an archive the tables within it, or the archive itself if it is a shard of samples.

    Raises:
        CatalogError: a pattern matches no table. StorageError: the address cannot be reached.
    """
    if glob.has_magic(uri) and not storage.exists(uri):
        found = storage.matching(uri)
        tables = [name for name in found if table_suffix(name)] or [one for name in found for one in _named(name)]
        if not tables:
            raise CatalogError(f"{uri}: the pattern matches no table")
        return tables
    if storage.is_file(uri):
        return _named(uri)
    files = visible_files(uri)
    return sorted(name for name in files if table_suffix(name)) or _shards(files)


def is_archive(address: str) -> bool:
    return address.lower().endswith(ARCHIVES)


def _named(address: str) -> list[str]:
    """The tables of a file that is named itself, whatever its name ends in."""
    if not is_archive(address):
        return [address]
    if not address.lower().endswith(".zip"):  # whose names stand together
        first = storage.first_names(address, 4 * LOOKED_AT)
        if is_shard(first) and not any(map(table_suffix, first)):
            return [address]
    names = list(storage.read_index(address))
    tables = [name for name in names if table_suffix(name) and is_visible("", name)]
    if not tables and is_shard(names):
        return [address]
    tables = tables or [name for name in names if name.lower().endswith((".json", ".xml")) and is_visible("", name)]
    return sorted(storage.member_address(address, name) for name in tables)


def _shards(files: list[str]) -> list[str]:
    """The archives among files of a folder without loose pictures, if the first and the last are shards of samples."""
    archives = sorted(name for name in files if is_archive(name))
    if not archives or any(name.lower().endswith(IMAGE_SUFFIXES) for name in files):
        return []
    ends = {archives[0], archives[-1]}
    return archives if all(is_shard(storage.first_names(one, 4 * LOOKED_AT)) for one in ends) else []


def kind_of(address: str) -> str:
    """What a table is: csv, tsv, text (delimited by what is found), json lines, json, xml, parquet or shard.

    By its name, else by its first bytes. Raises CatalogError for what is none.
    """
    if is_archive(address):
        return "shard"
    if suffix := table_suffix(address):
        return KINDS[suffix]
    if address.lower().endswith(SPREADSHEETS):
        raise CatalogError(
            f"{address}: unknown table format: a spreadsheet; save the table as CSV or Parquet (supported suffixes are "
            f"{', '.join(SUFFIXES)}, and .gz, .bz2)"
        )
    with opened(address) as file:
        head = file.read(_HEAD_BYTES)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"<") and not start[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "xml"
    if start.startswith((b"{", b"[")):
        return "json lines" if start.startswith(b"{") and _is_a_line(*start.partition(b"\n")[::2]) else "json"
    if b"\0" in head[:1024] and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CatalogError(
            f"{address}: no kind of table that is read: delimited text, Parquet ({', '.join(SUFFIXES)}), JSON, XML, "
            f"or an archive ({', '.join(ARCHIVES)})"
        )
    return "text"


def _is_a_line(first: bytes, rest: bytes) -> bool:
    """True if a first line is an object of JSON lines, and not all of a document."""
    try:
        found = json.loads(first)
    except ValueError:
        return False
    if rest.strip():
        return isinstance(found, dict) and rest.lstrip().startswith(b"{")
    # of a single line: a document has its records in a list of a name for many
    lists = {name for name in DOCUMENT_LISTS & set(found) if isinstance(found[name], list)}
    return not any(all(isinstance(one, dict) for one in found[name]) for name in lists)


def read_table(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> pa.Table:
    """One file as one table; see :func:`stream_table`."""
    return pa.concat_tables(stream_table(address, encoding=encoding, csv=csv))


def stream_table(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> Iterator[pa.Table]:
    """One file as tables of one schema and some :data:`PIECE_ROWS` rows each, so that memory does not grow with it.

    Text columns of CSV and TSV are all strings; see :class:`retailray.data.arrow_tables.LosslessTypes`.

    Raises:
        CatalogError: not readable as what its name says, or it has no rows; the message names the line and the value.
        StorageError: not reachable.
    """
    num_rows = 0
    for records in stream_records(address, encoding=encoding, csv=csv):
        num_rows += records.table.num_rows
        yield records.table
    if num_rows == 0:
        raise CatalogError(f"{address}: there is a header and no rows")


def stream_records(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV, below: str = "") -> Iterator[Records]:
    """The same, each table with the lines on which its rows begin. ``below``: the folder of all files of a catalog.

    A file without rows gives at most tables without rows.
    """
    kind = kind_of(address)
    if kind == "parquet":
        yield from _stream_parquet(address)
    elif kind == "json lines":
        yield from stream_json_lines(address, encoding)
    elif kind == "json":
        yield from stream_json_document(address, encoding)
    elif kind == "xml":
        yield from stream_xml(address, encoding)
    elif kind == "shard":
        yield from stream_shard(address, below)
    else:
        yield from _stream_csv(address, kind, encoding, csv)


class Head(NamedTuple):
    """``kind`` (csv, tsv, json, xml, parquet or shard) and columns of a table, and of CSV its delimiter."""

    kind: str
    columns: list[str]
    delimiter: str = ","


def head_of(address: str, *, encoding: str, csv: CsvOptions = PLAIN_CSV) -> Head:
    """What the first records of a table show; no more of it is read."""
    kind = kind_of(address)
    if kind in ("csv", "tsv", "text"):
        with text_of(address, encoding, max_line=MAX_LINE) as text:
            reader = _csv_reader(address, kind, text, csv)
            return Head("tsv" if reader.delimiter == "\t" else "csv", reader.names, reader.delimiter)
    if kind == "shard":
        return Head(kind, columns_of_shard(address))
    if kind == "parquet":
        with opened(address) as file:
            try:
                return Head(kind, pa.parquet.ParquetFile(file, pre_buffer=False).schema_arrow.names)
            except (pa.ArrowException, OSError) as error:
                raise CatalogError(f"{address}: not a Parquet file ({' '.join(str(error).split())})") from error
    rows = {"json": rows_of_document, "xml": rows_of_feed, "json lines": rows_of_lines}[kind](address, encoding)
    first = itertools.islice(rows, LOOKED_AT)
    return Head(kind.split(" ")[0], list(dict.fromkeys(name for _, row in first for name in row)))


def _stream_parquet(address: str) -> Iterator[Records]:
    num_rows = 0
    with opened(address) as file:
        try:
            # one column chunk after the other and not a row group in advance: row groups can be as large as the file
            source = pa.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            for batch in source.iter_batches(_rows_at_once(source.metadata)):
                yield Records(pa.Table.from_batches([batch]), np.arange(num_rows + 1, num_rows + 1 + batch.num_rows))
                num_rows += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{address}: not a Parquet file ({' '.join(str(error).split())})") from error


def _rows_at_once(metadata: Any) -> int:
    """Rows that are read together: fewer where they are large, as those that hold images are."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return int(min(PIECE_ROWS, max(1, _PARQUET_BYTES // max(1, largest))))


def _csv_reader(address: str, kind: str, text: Any, options: CsvOptions) -> CsvReader:
    delimiter = {"tsv": "\t"}.get(kind)
    if kind == "text" and options.delimiter is None and _is_apart_by_blanks(text, options.skip_lines):
        delimiter = WHITESPACE
    return CsvReader(address, (line.decode() for line in text), options, delimiter=delimiter)


def _is_apart_by_blanks(text: Any, skip_lines: int) -> bool:
    """True if the first lines have no delimiter of CSV, and as many words each."""
    lines = text.peek(_HEAD_BYTES).split(b"\n")[skip_lines : skip_lines + 50][:-1]
    lines = [line for line in lines if line.strip()]
    found = any(sign in line for line in lines for sign in (b",", b";", b"\t", b"|"))
    return bool(lines) and not found and len({len(line.split()) for line in lines}) == 1 and len(lines[0].split()) > 1


def _stream_csv(address: str, kind: str, encoding: str, options: CsvOptions) -> Iterator[Records]:
    with text_of(address, encoding, max_line=MAX_LINE) as text:
        reader = _csv_reader(address, kind, text, options)
        rows: list[list[str]] = []
        lines: list[int] = []
        faults: dict[int, str] = {}
        size = 0
        for found in reader:
            faults |= {len(rows) + at: fault for at, fault in found.faults.items()}
            rows += found.values
            lines += found.lines
            size += found.size
            if len(rows) >= PIECE_ROWS or size > _PIECE_BYTES:
                yield Records(_text_table(reader.names, rows), np.array(lines, dtype=np.int64), faults, untyped=True)
                rows, lines, faults, size = [], [], {}, 0
        yield Records(_text_table(reader.names, rows), np.array(lines, dtype=np.int64), faults, untyped=True)


def _text_table(names: list[str], rows: list[list[str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=names)
