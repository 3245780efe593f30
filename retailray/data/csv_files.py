"""CSV as people have it: the dialect is found by parsing, and no row is ever swallowed by a quote."""

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from retailray.config.catalog import WHITESPACE
from retailray.data.image_files import SUFFIXES
from retailray.errors import CatalogError

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_LINES = 200  # that decide the delimiter
LINES_AT_ONCE, CHARACTERS_AT_ONCE = 1_000, 4_000_000  # that are parsed together, at most
MAX_VALUE_BYTES = 8 << 20  # of one value; a quote that is never closed is noticed there
_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?$', re.IGNORECASE)  # Excel's
_PLAIN_QUOTES = 'set catalog.quoting to none if quote signs are plain text (15" for inches)'
Quoting = Literal["auto", "standard", "none"]


@dataclasses.dataclass(frozen=True)
class CsvOptions:
    """How a CSV file is read; see the settings of these names; ``keep_bad_lines``: ``catalog.bad_lines``."""

    delimiter: str | None = None
    quoting: Quoting = "auto"
    columns: tuple[str, ...] = ()
    keep_bad_lines: bool = False
    skip_lines: int = 0


class Records(NamedTuple):
    """The values of some rows, the line on which each begins (from 1), how many characters they take, and by position
    what is wrong with a row, whose values are then empty."""

    values: list[list[str]]
    lines: list[int]
    size: int
    faults: dict[int, str] = {}  # noqa: RUF012 (a NamedTuple's, and nobody writes into it)


class CsvReader:
    """The records of a CSV file, some at a time. ``names`` are the columns, ``delimiter`` what stands between values.

    Raises:
        CatalogError: a quote swallows rows, or a line has another number of values than the header; file and line are
            named, and what to do.
    """

    def __init__(self, address: str, lines: Iterable[str], options: CsvOptions, *, delimiter: str | None) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_VALUE_BYTES))
        self.address = address
        lines = iter(lines)
        self._number = sum(1 for _ in itertools.islice(lines, options.skip_lines))  # of the last line that was taken
        if WHITESPACE in (options.delimiter, delimiter):
            lines, delimiter = map(_with_tabs, lines), "\t"
            options = dataclasses.replace(options, delimiter=None, quoting="none")
        self.options = options
        sample = list(itertools.islice(lines, SAMPLE_LINES))
        while sample and (not sample[0].strip() or (found := _SEPARATOR_LINE.match(sample[0].rstrip("\r\n")))):
            delimiter = found[1] if sample[0].strip() and found else delimiter
            sample, self._number = sample[1:], self._number + 1
        if not sample:
            raise CatalogError(f"{address}: the file is empty")
        whole = len(sample) < SAMPLE_LINES - self._number + options.skip_lines
        self.delimiter = options.delimiter or delimiter or find_delimiter(sample, options.quoting, whole=whole)
        self._dialect = dialect(self.delimiter, options.quoting)
        self._lines = itertools.chain(sample, lines)
        self._taken: list[str] = []  # lines of the record that is being read
        self.names = list(options.columns) or self._header()

    def _header(self) -> list[str]:
        reader = csv.reader(self._count(self._lines), **self._dialect, strict=True)
        found = self._next(reader, None)
        if found is None:
            raise CatalogError(f"{self.address}: the file is empty")
        names, line = found
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CatalogError(
                f"{self.address}: line {line}: column names occur twice: {', '.join(map(repr, twice))}"
                + headerless_hint(names)
            )
        return names

    def __iter__(self) -> Iterator[Records]:
        width, num_bad = len(self.names), 0
        examples: list[str] = []
        while lines := self._take_lines():
            together = "".join(lines)
            if '"' not in together or self.options.quoting == "none":  # a line is a record, but for blank lines
                values = self._together(lines)
                blank = width == 1 and any(not row[0].strip() for row in values if row)
                if len(values) == len(lines) and set(map(len, values)) == {width} and not blank:
                    yield Records(values, list(range(self._number + 1, self._number + 1 + len(lines))), len(together))
                    self._number += len(lines)
                    continue
            found = Records([], [], len(together), {})
            for values_of_row, line in self._one_by_one(lines, width):
                if len(values_of_row) == width or self.options.keep_bad_lines:
                    if len(values_of_row) != width:
                        found.faults[len(found.values)] = f"{len(values_of_row)} values where the header has {width}"
                    found.values.append(values_of_row if len(values_of_row) == width else [""] * width)
                    found.lines.append(line)
                    continue
                num_bad += 1
                if len(examples) < 3:
                    examples.append(f"line {line}: {len(values_of_row)} values where the header has {width}")
            yield found
        if num_bad:
            more = f" (and {num_bad - 3} more lines)" if num_bad > 3 else ""
            raise CatalogError(
                f"{self.address}: {'; '.join(examples)}{more}; the delimiter is {self.delimiter!r}: quote values that "
                "contain it, set catalog.delimiter, or catalog.bad_lines to error to read all other lines"
            )

    def _together(self, lines: list[str]) -> list[list[str]]:
        try:
            return list(csv.reader(lines, **self._dialect))
        except csv.Error:  # a value that is too long; one by one, its line is named
            return []

    def _take_lines(self) -> list[str]:
        lines, size = [], 0
        for line in self._lines:
            lines.append(line)
            size += len(line)
            if len(lines) == LINES_AT_ONCE or size > CHARACTERS_AT_ONCE:
                break
        return lines

    def _one_by_one(self, lines: list[str], width: int) -> Iterator[tuple[list[str], int]]:
        """The records that begin in some lines; the last one may take further lines."""
        last = self._number + len(lines)
        reader = csv.reader(self._count(itertools.chain(lines, self._lines)), **self._dialect, strict=True)
        while self._number < last:
            found = self._next(reader, width)
            if found is None:
                return
            yield found

    def _count(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._number += 1
            self._taken.append(line)
            yield line

    def _next(self, reader: Iterator[list[str]], width: int | None) -> tuple[list[str], int] | None:
        """Values and line of the next record that is not a blank line; None at the end.

        ``width``: how many values it should have, None for the header.
        """
        while True:
            self._taken.clear()
            start = self._number + 1
            try:
                values = next(reader)
            except StopIteration:
                return None
            except csv.Error as error:
                raise CatalogError(f"{self.address}: line {start}: {self._explain(str(error), start)}") from error
            if len(self._taken) == 1 and len(values) != width and not self._taken[0].strip():
                continue
            if not values or (len(values) == 1 and not self._taken[0].strip()):
                continue
            if len(self._taken) > 1 and self.options.quoting == "auto":
                self._refuse_swallowed_rows(start, width or len(values))
            return values, start

    def _explain(self, error: str, start: int) -> str:
        if "expected after" in error:
            return (
                f"the quoted value that begins here closes on line {self._number}, and text follows its closing quote; "
                f"write a quote sign inside of a quoted value twice, or {_PLAIN_QUOTES}"
            )
        if "unexpected end" in error or "larger than" in error:
            end = "the end of the file" if "unexpected end" in error else f"line {self._number}"
            return f"a quoted value begins here and its quote is not closed before {end}; close it, or {_PLAIN_QUOTES}"
        return error

    def _refuse_swallowed_rows(self, start: int, width: int) -> None:
        """A stray quote takes in all lines up to the next one: lines in between that are rows of their own tell it."""
        for offset, line in enumerate(self._taken[1:], 1):
            try:
                alone = next(csv.reader([line], **self._dialect), [])
            except csv.Error:
                continue
            if len(alone) == width or (len(alone) > 1 and any(map(_names_an_image, alone))):
                raise CatalogError(
                    f"{self.address}: line {start}: a quoted value runs from here to line {self._number}, and line "
                    f"{start + offset} inside of it looks like a row of its own; close the quote, {_PLAIN_QUOTES}, or "
                    "to standard if the value is meant to hold these lines"
                )


def _with_tabs(line: str) -> str:
    """A line whose values are apart by any number of blanks and tabs, with one tab between them."""
    return "\t".join(line.split()) + "\n"


def dialect(delimiter: str, quoting: Quoting) -> dict[str, Any]:
    """Return the arguments of :func:`csv.reader`."""
    return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL}


def find_delimiter(sample: list[str], quoting: Quoting, *, whole: bool) -> str:
    """Return the delimiter under which the first lines parse as a table: every row as wide as the header, and wide.

    Args:
        whole: the sample is all of the file, so that its last record is not cut.
    """
    best, best_rank = DELIMITERS[0], (False, False, 0.0, 1, 0)
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(sample, **dialect(delimiter, quoting)) if "".join(row).strip()]
        except csv.Error:
            continue
        if not rows or len(rows[0]) < 2:
            continue
        header, rows = rows[0], rows[1:] if whole else rows[1:-1]
        same = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        odd = sum(name != name.strip() or any(other in name for other in DELIMITERS) for name in header)
        rank = (same == 1, not any('"' in name for name in header), same, len(header), -odd)
        if rank > best_rank:
            best, best_rank = delimiter, rank
    return best


def _names_an_image(value: str) -> bool:
    return "://" in value or value.strip().lower().endswith(SUFFIXES)


def headerless_hint(names: list[str]) -> str:
    """Return what to do if a header looks like a row of data; '' if it does not."""
    if len(names) == 1 and names[0].strip().isdigit():
        return f"; the first line is {names[0].strip()!r}, a count it seems: set catalog.skip_lines to 1"
    if not any(_names_an_image(name) or name.strip().replace(".", "", 1).isdigit() for name in names):
        return ""
    example = ",".join(f"column{number}" for number in range(1, len(names) + 1))
    return (
        f"; the file seems to have no header, its first line is {', '.join(map(repr, names[:6]))}: name its columns in "
        f"order with catalog.columns (one of them image), e.g. --catalog.columns {example}"
    )
