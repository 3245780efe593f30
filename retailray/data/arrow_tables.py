"""Arrow tables: cut, gathered and written; one schema for several; the types of text columns."""

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

_INTEGER = r"^(-?(0|[1-9][0-9]{0,17}))?$"
# up to 15 digits, which a float64 holds exactly; no exponents, because article numbers look like them (12E4)
_DECIMAL = r"^(-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)?$"


def run_starts(column: pa.Array) -> np.ndarray:
    """Where each run of equal values begins, int64, ascending from 0; of a column that is not empty, without nulls."""
    changes = pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, changes))


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
