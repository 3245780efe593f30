"""Records of a source, as Arrow tables of one schema, a piece at a time."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from retailray.data.text_files import PIECE_ROWS
from retailray.errors import CatalogError

Row = dict[str, Any]
Pieces = Iterator[tuple[list[Row], np.ndarray]]  # rows, and the line or number of each


class Records(NamedTuple):
    """Some records of one file: their columns as they are read, the line on which each begins (from 1; of what has no
    lines its number), int64 ``(N,)``, and by position why a record cannot be read."""

    table: pa.Table
    lines: np.ndarray
    faults: dict[int, str] = {}  # noqa: RUF012 (a NamedTuple's, and nobody writes into it)
    untyped: bool = False  # all columns are read as text


def in_pieces(rows: Iterator[tuple[int, Row]]) -> Pieces:
    """Numbered rows, :data:`PIECE_ROWS` at a time."""
    held: list[Row] = []
    lines: list[int] = []
    for number, row in rows:
        held.append(row)
        lines.append(number)
        if len(held) == PIECE_ROWS:
            yield held, np.array(lines, dtype=np.int64)
            held, lines = [], []
    if held:
        yield held, np.array(lines, dtype=np.int64)


def typed(address: str, read: Callable[[], Pieces], *, lenient: bool = True) -> Iterator[Records]:
    """Tables of one schema. Two readings where there are several pieces: the first learns the types of all of them.

    A column of objects or lists of several types becomes text, as JSON; ``lenient``: also one that mixes
    them with other values.

    Raises:
        CatalogError: a column mixes types.
    """
    schemas: list[pa.Schema] = []
    only: Records | None = None
    for rows, lines in read():
        only = Records(_table(address, rows, lines, lenient=lenient), lines)
        schemas.append(only.table.schema)
        if len(schemas) > 1:
            schemas = [_unified(address, schemas)]
            only = None
    if only is not None and len(schemas) == 1 and only.table.schema == schemas[0]:
        yield only
        return
    for rows, lines in read():
        yield Records(_table(address, rows, lines, schemas[0], lenient=lenient), lines)


def _unified(address: str, schemas: list[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        # objects that differ from piece to piece; and what is text in one piece is text in all
        nested = {field.name for schema in schemas for field in schema if pa.types.is_nested(field.type)}
        texts = [_with_text(schema, nested) for schema in schemas]
        try:
            return pa.unify_schemas(texts, promote_options="permissive")
        except pa.ArrowException:
            raise CatalogError(f"{address}: a column mixes types ({error})") from error


def _with_text(schema: pa.Schema, names: set[str]) -> pa.Schema:
    return pa.schema([pa.field(one.name, pa.string()) if one.name in names else one for one in schema])


def _table(
    address: str, rows: list[Row], lines: np.ndarray, schema: pa.Schema | None = None, *, lenient: bool
) -> pa.Table:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = schema.field(name).type if schema else None
        try:
            columns[name] = pa.array(values, kind)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
            nested = [isinstance(value, dict | list) for value in values if value is not None]
            if all(nested) or (lenient and any(nested)):
                columns[name] = pa.array([_as_json(value) for value in values], pa.string())
                continue
            why = f"{_odd_line(values, lines)}{error}"
            raise CatalogError(f"{address}: column {name!r} mixes types or holds values of none ({why})") from error
    return pa.table(columns)


def _as_json(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _odd_line(values: list[object], lines: np.ndarray) -> str:
    """The first line whose value is of another type than those before it."""
    there = [(value, line) for value, line in zip(values, lines.tolist(), strict=True) if value is not None]
    kinds = [float if type(value) is int else type(value) for value, _ in there]
    for (value, line), kind in zip(there, kinds, strict=True):
        if kind is not kinds[0]:
            return f"line {there[0][1]} holds {there[0][0]!r:.60}, line {line} {value!r:.60}; "
    return ""
