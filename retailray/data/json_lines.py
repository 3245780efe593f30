"""JSON lines: one object a line."""

import json
from collections.abc import Iterator

from retailray.data.records import Records, Row, in_pieces, typed
from retailray.data.text_files import MAX_LINE, text_of
from retailray.errors import CatalogError


def stream_json_lines(address: str, encoding: str) -> Iterator[Records]:
    """Tables of one schema. Raises CatalogError, with the line."""
    return typed(address, lambda: in_pieces(rows_of_lines(address, encoding)), lenient=False)


def rows_of_lines(address: str, encoding: str) -> Iterator[tuple[int, Row]]:
    with text_of(address, encoding, max_line=MAX_LINE) as text:
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
            yield number, row
