"""Names (ids of shoppers, products) as numbers while a table is read, and as users wrote them in what is written."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.data.arrow_tables import as_text

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class Names:
    """Distinct names in the order of their first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._kind: pa.DataType | None = None
        self._plain = True  # all of them are integers, written as one writes them

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(self, column: pa.ChunkedArray, *, untyped: bool) -> np.ndarray:
        """int32 ``(N,)``; -1 where there is no name (null, or blanks alone).

        ``untyped``: of a text file, in which integers are text too.
        """
        kind = column.type
        integer = pa.types.is_integer(kind)
        self._kind = kind if integer and self._kind in (None, kind) else pa.string()
        encoded = pc.utf8_trim_whitespace(as_text(column).combine_chunks()).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        self._plain &= integer or (untyped and all(_INTEGER.fullmatch(name) for name in names if name))
        numbers = [self._numbers.setdefault(name, len(self._numbers)) if name else -1 for name in names]
        found = np.array([*numbers, -1], np.int32)
        return found[pc.fill_null(encoded.indices, len(numbers)).to_numpy(zero_copy_only=False)]

    def texts(self) -> list[str]:
        return list(self._numbers)

    def array(self) -> pa.Array:
        """The names by number: integers where the table has integers, else text."""
        return typed(self.texts(), self.kind)

    @property
    def kind(self) -> pa.DataType:
        """Of :meth:`array`."""
        if not self._plain or not self._numbers:
            return pa.string()
        return self._kind if self._kind is not None and pa.types.is_integer(self._kind) else pa.int64()

    def find(self, names: list[str]) -> np.ndarray:
        """Numbers of texts, int64; -1 where there is no such name."""
        return np.array([self._numbers.get(name, -1) for name in names], np.int64)


def typed(names: list[str], kind: pa.DataType) -> pa.Array:
    """Names as integers of a type, if it is one of integers and all of them are written as one writes integers: 007 is
    not 7; else as text."""
    texts = pa.array(names, pa.string())
    if not pa.types.is_integer(kind):
        return texts
    try:
        found = texts.cast(kind)
    except pa.ArrowInvalid:  # names of another table: no integers, or too large for the type
        return texts
    return found if found.cast(pa.string()).equals(texts) else texts
