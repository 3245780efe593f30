"""Rows of purchases and sales that cannot be used: counted, and listed with where they stand."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from retailray import events
from retailray.data.names import Names
from retailray.data.records import Records

MAX_LISTED = 100_000
MANY = 0.2  # of the rows
SCHEMA = pa.schema({"file": pa.string(), "row": pa.int64(), "error_code": pa.string(), "message": pa.string()})


class BadRows:
    """``counts``: rows by why they are not used, and other counts of the same table."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._codes: set[str] = set()
        self._rows: list[dict[str, object]] = []

    def note(self, file: str, records: Records, problems: Mapping[str, tuple[np.ndarray, str | None]]) -> np.ndarray:
        """Count and list the rows that have a problem; a row has the first of its problems.

        Args:
            problems: by error code, bool ``(N,)`` and the column that is to blame.

        Returns:
            bool ``(N,)``: which rows are bad.
        """
        of_lines = {"bad_line": (np.isin(np.arange(records.table.num_rows), list(records.faults)), None)}
        seen = np.zeros(records.table.num_rows, bool)
        for code, (wrong, column) in (of_lines | dict(problems)).items():
            new = np.flatnonzero(wrong & ~seen)
            seen |= wrong
            self.counts[code] += len(new)
            self._codes.add(code)
            for at in new[: MAX_LISTED - len(self._rows)].tolist():
                told = records.faults.get(at) or f"{column} = {records.table.column(str(column))[at].as_py()!r:.80}"
                self._rows.append(
                    {"file": file, "row": int(records.lines[at]), "error_code": code, "message": told}
                )  # fmt: skip
        return seen

    def warn(self, uri: str) -> None:
        """A warning where many rows cannot be used."""
        lost = {code: self.counts[code] for code in self._codes if self.counts[code]}
        if sum(lost.values()) > MANY * self.counts["rows"]:
            told = ", ".join(f"{code}: {count}" for code, count in lost.items())
            note = f"{uri}: many of its {self.counts['rows']} rows cannot be used ({told}); errors/ lists them"
            events.emit("warning", note=note)

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self._rows, SCHEMA)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the patterns (``*GASOLINE*``); case matters."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def named_by(patterns: Sequence[str], names: Names, numbers: np.ndarray) -> np.ndarray:
    """bool ``(N,)``: whether the name of each number matches a pattern."""
    if not patterns:
        return np.zeros(len(numbers), bool)
    texts, there = names.texts(), np.unique(numbers)
    return np.isin(numbers, [number for number in there[there >= 0].tolist() if matches(texts[number], patterns)])


def warn_of_patterns(key: str, patterns: Sequence[str], names: Names) -> None:
    """A warning for each pattern that no name matches."""
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names.texts()):
            events.emit("warning", note=f"{key}: no product matches {pattern!r}")
