"""Read a catalog file of any of the formats people have into Arrow tables, a piece at a time, losing nothing.

CSV has no types: a column becomes integer or floating only where that is lossless in form, so that ``00012`` and
``1e5-b`` stay text. The columns that mean something to us (image, id, label, group, split) always stay text.
"""

from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from retailray import storage
from retailray.data.csv_files import CsvOptions, CsvReader
from retailray.data.json_lines import stream_json_lines
from retailray.data.text_files import COMPRESSIONS, PIECE_ROWS, opened, text_of
from retailray.errors import CatalogError

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")
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
        yield from stream_json_lines(address, encoding)
    else:
        yield from _stream_csv(address, suffix, encoding, csv)


def _stream_parquet(address: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    num_rows = 0
    with opened(address) as file:
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
    with text_of(address, encoding) as text:
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
