"""JSON lines: one object a line, read as tables of one schema."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from retailray.data.text_files import PIECE_ROWS, text_of
from retailray.errors import CatalogError


def stream_json_lines(address: str, encoding: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Two readings where there are several pieces: the first learns the types of all of them."""
    schemas: list[pa.Schema] = []
    only: tuple[pa.Table, np.ndarray] | None = None
    for rows, lines in _pieces(address, encoding):
        only = _table(address, rows, lines), lines
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
    for rows, lines in _pieces(address, encoding):
        yield _table(address, rows, lines, schemas[0]), lines


def _pieces(address: str, encoding: str) -> Iterator[tuple[list[dict[str, object]], np.ndarray]]:
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    with text_of(address, encoding) as text:
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


def _table(address: str, rows: list[dict[str, object]], lines: np.ndarray, schema: pa.Schema | None = None) -> pa.Table:
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
