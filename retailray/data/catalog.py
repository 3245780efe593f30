"""A catalog: one row per image, each with a row id, and what its columns mean."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.class_folders import read_class_folders
from retailray.data.columns import SPLIT_NAMES, Piece, image_column, meaning_of, renamed_label, require, with_split
from retailray.data.corrections import correct, read_corrections, warn_of_strangers
from retailray.data.csv_files import CsvOptions
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.tables import is_visible, stream_lines, table_files, table_suffix
from retailray.errors import CatalogError


@dataclasses.dataclass(frozen=True)
class Catalog:
    """What every row of a catalog means.

    Columns of ``rows``: ``row_id`` (int64, unique within all that one command reads; results are joined on it), then
    text: ``id``, ``image`` (as the catalog says it), ``uri`` (where it is; '' if the row names none),
    ``denied_reason`` (why it may not be read there; '' if it may), ``label`` ('' if none), ``group``, ``split``
    ('' if the table does not say), ``file``; and ``line`` (int64, where the row begins, counted from 1 with the header;
    for Parquet the row) and ``repeated`` (bool: an earlier row has the id).
    """

    uri: str
    rows: pa.Table

    def __len__(self) -> int:
        return self.rows.num_rows

    def select(self, mask: np.ndarray) -> "Catalog":
        return Catalog(self.uri, self.rows.filter(pa.array(mask)))

    def take(self, indices: np.ndarray) -> "Catalog":
        return Catalog(self.uri, self.rows.take(indices))

    def column(self, name: str) -> np.ndarray:
        """One column of ``rows`` as an object (or int64) array."""
        return self.rows.column(name).to_numpy()


def read_catalog(
    section: CatalogSection, *, uri: str | None = None, needs_label: bool = True, first_row_id: int = 0
) -> Catalog:
    """Read the catalog that a config section describes (``uri`` overrides the section's, for a split's own table).

    Raises:
        CatalogError: naming file, line, column and value, and what to set.
        StorageError: the address cannot be reached.
    """
    pieces = stream_catalog(section, uri=uri, needs_label=needs_label, first_row_id=first_row_id)
    rows = _with_repeats(pa.concat_tables([piece.rows for piece in pieces]))
    said = corrections_of(section)
    if said is not None:
        rows, num_known = correct(rows, said, access_of(section))
        if not (section.validation_uri or section.test_uri):  # else they may be of another table's rows
            warn_of_strangers(said, num_known)
    return Catalog(uri or section.uri, rows)


def corrections_of(section: CatalogSection) -> pa.Table | None:
    """What :func:`retailray.data.corrections.read_corrections` finds, its labels renamed as the catalog's are; None
    without ``catalog.corrections``."""
    if not section.corrections:
        return None
    said = read_corrections(section.corrections)
    labels = [renamed_label(label, section) for label in said.column("label").to_pylist()]
    return said.set_column(said.column_names.index("label"), "label", pa.array(labels, pa.string()))


def stream_catalog(
    section: CatalogSection, *, uri: str | None = None, needs_label: bool = True, first_row_id: int = 0
) -> Iterator[Piece]:
    """The same a piece at a time, so that memory does not grow with the catalog (class folders are listed whole).

    Text columns of CSV are text still: see :class:`retailray.data.arrow_tables.LosslessTypes`.
    """
    uri = uri or section.uri
    storage.check_readable(uri)
    files = table_files(uri)
    if not files:
        yield _numbered(read_class_folders(uri, section), first_row_id)
        return
    if not any(table_suffix(file) in (".csv", ".tsv") for file in files):
        ignored = section.non_default_fields() & {"columns", "delimiter", "quoting"}
        if ignored:
            names = ", ".join(f"catalog.{name}" for name in sorted(ignored))
            raise CatalogError(f"{uri}: {names} would be ignored: no file of it is CSV or TSV")
    splits = {} if section.split or len(files) == 1 else _splits_of_folders(uri, files)
    image, row_id = None, first_row_id
    for file in files:
        file_rows = 0
        for table, lines in stream_lines(file, encoding=section.encoding, csv=csv_options(section)):
            image = image or image_column(table, file, section)
            require(table, image, "catalog.image", file)
            piece = meaning_of(file, table, image, section, uri, needs_label, lines=lines)
            rows = with_split(piece.rows, splits[file]) if splits else piece.rows
            if table.num_rows:
                yield _numbered(dataclasses.replace(piece, rows=rows), row_id)
            row_id, file_rows = row_id + table.num_rows, file_rows + table.num_rows
        if not file_rows:
            raise CatalogError(f"{file}: there is a header and no rows")


def csv_options(section: CatalogSection) -> CsvOptions:
    """How the CSV files of a catalog are read."""
    return CsvOptions(section.delimiter, section.quoting, tuple(section.columns))


def _numbered(piece: Piece, first: int) -> Piece:
    numbers = pa.array(np.arange(first, first + piece.rows.num_rows))
    return dataclasses.replace(piece, rows=piece.rows.add_column(0, "row_id", numbers))


def _with_repeats(rows: pa.Table) -> pa.Table:
    """Append ``repeated``: True for every row whose id an earlier row of the same catalog has."""
    codes = rows.column("id").combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(rows.num_rows, dtype=bool)
    repeated[first] = False
    return rows.append_column("repeated", pa.array(repeated))


def _splits_of_folders(uri: str, files: Sequence[str]) -> dict[str, str]:
    """The split of every table, where every one of them lies in a folder named like one (``train/``, ``test/``)."""
    folders = {file: storage.parent(file)[len(uri) :].strip("/").split("/")[0].lower() for file in files}
    names = {file: SPLIT_NAMES.get(folder, "") for file, folder in folders.items()}
    return names if all(names.values()) else {}


def visible_images(folder: str, files: Iterable[str]) -> list[str]:
    """The images among files below a folder, sorted; pictures in run directories of ours do not count."""
    return sorted(name for name in files if is_visible(folder, name) and name.lower().endswith(IMAGE_SUFFIXES))


def concat_rows(parts: list[Catalog]) -> Catalog:
    """One catalog after the other."""
    return Catalog(parts[0].uri, pa.concat_tables([part.rows for part in parts]))


def count_labels(labels: np.ndarray) -> dict[str, int]:
    """Return the number of rows per label, sorted by name, without the empty label."""
    counts = pc.value_counts(pa.array(labels, pa.string()))
    return {
        row["values"]: row["counts"]
        for row in sorted(counts.to_pylist(), key=lambda row: row["values"])
        if row["values"]
    }
