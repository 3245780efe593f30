"""From the records of a source to rows, one for every picture."""

import dataclasses
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.arrow_tables import as_text
from retailray.data.cells import SEPARATORS, BadCell, addresses_in, lookup
from retailray.data.embedded_images import embedded_images, holds_images
from retailray.data.paths import columns_of
from retailray.data.records import Records
from retailray.errors import CatalogError

ITEM_ID, INDEX, ADDRESS = (
    "item_id",
    "image_index",
    "image_uri",
)  # appended to the user's columns where a record has several pictures
_SIGNS = r"[\[|;,]"  # without one of these a cell has one address
BAD_LINE, BAD_RECORD = "bad_line", "bad_record"  # error codes


@dataclasses.dataclass
class Counts:
    """``records`` = those with pictures + ``without_image`` + ``failed``; ``pictures`` of the first."""

    records: int = 0
    with_pictures: int = 0
    without_image: int = 0
    failed: int = 0
    pictures: int = 0
    several_labels: int = 0


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Rows, one a picture; a record without one has one row too.

    Attributes:
        table: the user's columns, of each row's record. lines: where the record begins, int64 ``(N,)``.
        images: what the record says of the picture; '' if nothing. index: of the picture within its record, from 0, or
            None where every record has one. fault_codes, faults: why a record cannot be read; '' if it can.
        by_settings: that records have several pictures follows from settings, and is the same every night.
        by_template_alone: the record says nothing of its picture but by ``catalog.image_template``. places: paths and
            addresses of pictures that lie in the table itself.
    """

    table: pa.Table
    lines: np.ndarray
    images: list[str]
    index: np.ndarray | None
    fault_codes: list[str]
    faults: list[str]
    by_template_alone: bool = False
    by_settings: bool = False
    places: tuple[list[str], list[str]] | None = None


def plain_pictures(
    table: pa.Table, images: list[str], lines: np.ndarray, places: tuple[list[str], list[str]] | None = None
) -> Pictures:
    """One picture a record, and nothing wrong with any."""
    return Pictures(table, lines, images, None, [""] * len(images), [""] * len(images), places=places)


class PictureReader:
    """Finds the pictures of records. One for a whole catalog: what its first records show holds for all of them.

    Args:
        section: with the settings of its layout.
    """

    def __init__(self, section: CatalogSection, *, with_layout: bool) -> None:
        self.section = section
        self.counts = Counts()
        self.separators: Counter[str] = Counter()  # that were found, and in how many cells
        by_settings = with_layout or section.image_separator is not None or len(section.images) > 1
        # whether records have several pictures; None: the first ones will say
        self.several: bool | None = True if by_settings else None
        self.by_settings = by_settings
        fields = {name for _, name, _, _ in string.Formatter().parse(_checked(section.image_template)) if name}
        self.uses_image = "image" in fields or section.image_template == "{image}"

    def read(self, file: str, records: Records) -> Pictures:
        """The pictures of some records, whose columns are there. Raises CatalogError."""
        table, faults = records.table, dict(records.faults)
        if found := self._embedded(file, records) or self._plain(file, records):
            return found
        codes = dict.fromkeys(faults, BAD_LINE)
        cells = self._cells(file, table, faults)
        codes |= dict.fromkeys(faults.keys() - codes.keys(), BAD_RECORD)
        self._look_for_several_labels(table, faults, codes)
        self._decide(file, table, cells, records.lines)
        lengths = np.array([max(1, len(cell)) for cell in cells], dtype=np.int64)
        bad = np.zeros(len(cells), dtype=bool)
        bad[list(faults)] = True
        filled = np.array([len(cell) > 0 for cell in cells], dtype=bool)
        self.counts.records += len(cells)
        self.counts.failed += int(bad.sum())
        self.counts.with_pictures += int((filled & ~bad).sum())
        self.counts.without_image += int((~filled & ~bad).sum())
        self.counts.pictures += int(lengths[filled & ~bad].sum())
        of_record = np.repeat(np.arange(len(cells)), lengths)
        index = np.arange(len(of_record)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        if len(of_record) != table.num_rows:
            table = table.take(pa.array(of_record))
        return Pictures(
            table,
            records.lines[of_record],
            [cell[at] if cell else "" for cell in cells for at in range(max(1, len(cell)))],
            index if self.several else None,
            [codes.get(record, "") for record in of_record.tolist()],
            [faults.get(record, "") for record in of_record.tolist()],
            by_settings=self.by_settings,
            by_template_alone=not self.uses_image and not columns_of(self.section.images, table.column_names),
        )

    def _embedded(self, file: str, records: Records) -> Pictures | None:
        """The pictures of a table that holds their bytes; None for every other."""
        columns = columns_of(self.section.images, records.table.column_names)
        if len(columns) != 1 or columns[0][1] or not holds_images(records.table.column(columns[0][0])):
            return None
        root = self.section.root or storage.parent(file)
        table, images, paths, addresses = embedded_images(
            file, records.table, columns[0][0], self.section, root, records.lines
        )
        self.counts.records += table.num_rows
        self.counts.with_pictures += table.num_rows
        self.counts.pictures += table.num_rows
        return plain_pictures(table, images, records.lines, (paths, addresses))

    def _plain(self, file: str, records: Records) -> Pictures | None:
        """The pictures of records with one each, found without a look at every cell; None where that is not sure."""
        table = records.table
        columns = columns_of(self.section.images, table.column_names)
        if self.several or records.faults or "labels" in table.column_names or len(columns) != 1 or columns[0][1]:
            return None
        column = table.column(columns[0][0])
        if not pa.types.is_string(column.type) or pc.any(pc.match_substring_regex(column, _SIGNS)).as_py():
            return None
        images = pc.fill_null(column, "").to_pylist()
        filled = sum(1 for image in images if image.strip())
        self.several = False if table.num_rows else self.several
        self.counts.records += len(images)
        self.counts.with_pictures += filled
        self.counts.without_image += len(images) - filled
        self.counts.pictures += filled
        return plain_pictures(table, images, records.lines)

    def _cells(self, file: str, table: pa.Table, faults: dict[int, str]) -> list[list[str]]:
        """The addresses of every record; ``faults`` gets what cannot be read."""
        columns = columns_of(self.section.images, table.column_names)
        if not columns:
            return [[] if at in faults else ["by template"] for at in range(table.num_rows)]
        separator = self.section.image_separator if self.uses_image else ""
        if self.section.format == "none" and separator is None:
            separator = ""  # a cell is an address, whatever it looks like
        cells: list[list[str]] = [[] for _ in range(table.num_rows)]
        for name, path in columns:
            for at, value in enumerate(_values(file, table, name, path)):
                if at in faults:
                    continue
                try:
                    found = addresses_in(value, separator)
                except BadCell as error:
                    faults[at], cells[at] = f"column {name!r}: {error}", []
                    continue
                if len(found) > 1 and isinstance(value, str):
                    self.separators[_separator(value)] += 1
                cells[at] += found
        return cells

    def _decide(self, file: str, table: pa.Table, cells: list[list[str]], lines: np.ndarray) -> None:
        longest = max((len(cell) for cell in cells), default=0)
        if self.several is None and table.num_rows:
            columns = columns_of(self.section.images, table.column_names)
            nested = any(path or pa.types.is_nested(table.schema.field(name).type) for name, path in columns)
            self.several = nested or longest > 1 or len(columns) > 1
        if longest > 1 and not self.several:
            line = lines[next(at for at, cell in enumerate(cells) if len(cell) > 1)]
            raise CatalogError(
                f"{file}: line {line}: {longest} addresses in one cell, and the records before it have one each: set "
                "catalog.image_separator to what stands between them, or catalog.format to none if it is one address"
            )

    def _look_for_several_labels(self, table: pa.Table, faults: dict[int, str], codes: dict[int, str]) -> None:
        if "labels" not in table.column_names or self.section.label != "label":
            return
        for at, several in enumerate(table.column("labels").to_pylist()):
            if isinstance(several, list) and len(several) > 1 and at not in faults:
                self.counts.several_labels += 1
                if self.section.several_labels == "error":
                    faults[at] = f"it has several labels: {', '.join(map(str, several[:5]))} (catalog.several_labels)"
                    codes[at] = BAD_RECORD


def _checked(template: str) -> str:
    try:
        list(string.Formatter().parse(template))
    except ValueError:
        return "{image}"  # what is wrong with it is said where it is used
    return template


def _values(file: str, table: pa.Table, name: str, path: Sequence[str]) -> list[Any]:
    column = table.column(name)
    if path or pa.types.is_nested(column.type):
        return [lookup(value, path) for value in column.to_pylist()]
    if holds_images(column):
        raise CatalogError(f"{file}: column {name!r} holds images, which cannot stand beside other columns of images")
    try:
        return as_text(column).to_pylist()
    except (TypeError, pa.ArrowException) as error:
        raise CatalogError(f"{file}: catalog.image = {name!r}: {error}") from error


def _separator(text: str) -> str:
    if text.lstrip().startswith("["):
        return "list"
    return next((one for one in SEPARATORS if one in text), "other")
