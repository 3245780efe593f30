"""A catalog: one row per image, each with a row id, and what its columns mean."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from retailray import events, storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.class_folders import read_class_folders
from retailray.data.columns import (
    SPLIT_NAMES,
    Piece,
    image_columns,
    meaning_of,
    missing_column,
    renamed_label,
    with_split,
)
from retailray.data.corrections import correct, read_corrections, warn_of_strangers
from retailray.data.csv_files import CsvOptions
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.paths import column_of, columns_of
from retailray.data.pictures import Counts, PictureReader
from retailray.data.recognition import Recognised, catalog_files, recognise
from retailray.data.records import Records
from retailray.data.tables import Head, head_of, is_archive, is_visible, stream_records
from retailray.errors import CatalogError


@dataclasses.dataclass(frozen=True)
class Source:
    """What a catalog was found to be: its layout with the settings that follow, what stands between addresses in how
    many cells, and its records; ``section`` has these settings, ``head``: its kind,
    columns and delimiter."""

    section: CatalogSection
    head: Head
    format: str | None
    settings: dict[str, Any]
    separators: dict[str, int]
    counts: Counts
    label_paths: Mapping[str, set[tuple[str, ...]]] = dataclasses.field(default_factory=dict)  # see Piece

    def facts(self) -> dict[str, object]:
        """For events, records and reports."""
        counts = {name: value for name, value in dataclasses.asdict(self.counts).items() if value or name == "records"}
        found = {"format": self.format, "settings": self.settings} if self.format else {}
        return found | ({"separators": self.separators} if self.separators else {}) | counts

    @property
    def is_plain(self) -> bool:
        """True for one picture a record, and nothing recognised."""
        return not self.format and not self.separators and self.counts.records == self.counts.pictures

    @property
    def product_column(self) -> str | None:
        """The user's name of what makes rows one product; None where every row is a product of its own.

        Without a column of products a record with several pictures is one, under its id.
        """
        several = self.counts.pictures > self.counts.with_pictures
        return self.section.group or ((self.section.id or "product") if several else None)

    def settings_file(self) -> str:
        """YAML for ``--config`` with which the catalog is read in the same way, whatever is recognised later."""
        names = self.section.non_default_fields() | set(self.settings)
        values = {name: value for name, value in self.section.model_dump(mode="json").items() if name in names}
        values |= {"format": self.format or "none"}
        return yaml.safe_dump({"catalog": values}, sort_keys=False, allow_unicode=True)


def source_facts(parts: Iterable["Catalog"]) -> dict[str, object]:
    """What the catalogs of a command were found to be; nothing of plain ones."""
    sources = {id(part.source): part.source for part in parts if part.source and not part.source.is_plain}
    found = [source.facts() for source in sources.values()]
    return {"source": found[0] if len(found) == 1 else found} if found else {}


@dataclasses.dataclass(frozen=True)
class Catalog:
    """What every row of a catalog means.

    Columns of ``rows``: ``row_id`` (int64, unique within all that one command reads; results are joined on it), then
    text: ``id``, ``image`` (as the catalog says it), ``uri`` (where it is; '' if the row names none),
    ``denied_reason`` (why it may not be read there; '' if it may), ``fault_code`` (of a record that cannot be
    read, whose reason stands in ``denied_reason``; '' if it can), ``label`` ('' if none), ``group``, ``split``
    ('' if the table does not say), ``file``; and ``line`` (int64, where the row begins, counted from 1 with the header;
    for Parquet the row) and ``repeated`` (bool: an earlier row has the id).
    """

    uri: str
    rows: pa.Table
    source: Source | None = None

    def __len__(self) -> int:
        return self.rows.num_rows

    def select(self, mask: np.ndarray) -> "Catalog":
        return dataclasses.replace(self, rows=self.rows.filter(pa.array(mask)))

    def take(self, indices: np.ndarray) -> "Catalog":
        return dataclasses.replace(self, rows=self.rows.take(indices))

    @property
    def has_products(self) -> bool:
        """Whether rows may be of one product: see :attr:`Source.product_column`."""
        return self.source is not None and self.source.product_column is not None

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
    reader = CatalogReader(section, uri=uri, needs_label=needs_label, first_row_id=first_row_id)
    rows = _with_repeats(pa.concat_tables([piece.rows for piece in reader.pieces()]))
    if (known := reader.labels_of_products()) is not None:
        rows = _with_labels_of_products(rows, known)
    said = corrections_of(section)
    if said is not None:
        rows, num_known = correct(rows, said, access_of(section))
        if not (section.validation_uri or section.test_uri):  # else they may be of another table's rows
            warn_of_strangers(said, num_known)
    return Catalog(uri or section.uri, rows, reader.source())


def corrections_of(section: CatalogSection) -> pa.Table | None:
    """What :func:`retailray.data.corrections.read_corrections` finds, its labels renamed as the catalog's are; None
    without ``catalog.corrections``."""
    if not section.corrections:
        return None
    said = read_corrections(section.corrections)
    labels = [renamed_label(label, section) for label in said.column("label").to_pylist()]
    return said.set_column(said.column_names.index("label"), "label", pa.array(labels, pa.string()))


class CatalogReader:
    """Reads the catalog of a section a piece at a time; :attr:`section` has what its layout sets, once that is known.

    Args and errors: see :func:`read_catalog`.
    """

    def __init__(
        self, section: CatalogSection, *, uri: str | None = None, needs_label: bool = True, first_row_id: int = 0
    ) -> None:
        self.section, self.uri = section, uri or section.uri
        self.needs_label, self._row_id = needs_label, first_row_id
        self.recognised = Recognised(section, None, "", {})
        self._pictures: PictureReader | None = None
        self._head = Head("", [])
        self._labels_of_products: dict[str, str] = {}  # of records without an image
        self._products: Counter[str] = Counter()
        self._label_paths: dict[str, set[tuple[str, ...]]] = {}
        self._without_image: list[Piece] = []
        self._with_image: set[str] = set()

    def pieces(self) -> Iterator[Piece]:
        """Memory does not grow with the catalog (but class folders are listed whole).

        Text columns of CSV are text still: see :class:`retailray.data.arrow_tables.LosslessTypes`.
        """
        storage.check_readable(self.uri)
        files = catalog_files(self.uri, encoding=self.section.encoding)
        if not files:
            folder = f"{self.uri}!" if is_archive(self.uri) else self.uri
            yield self._numbered(read_class_folders(folder, self.section))
            return
        self._recognise(files)
        folder = storage.folder_of(self.uri)
        splits = {} if self.section.split or len(files) == 1 else _splits_of_folders(self.uri, files)
        for file in files:
            file_rows = 0
            for records in stream_records(
                file, encoding=self.section.encoding, csv=csv_options(self.section), below=folder
            ):
                piece = self._piece(file, records)
                rows = with_split(piece.rows, splits[file]) if splits else piece.rows
                file_rows += rows.num_rows
                if rows.num_rows and (kept := self._kept(dataclasses.replace(piece, rows=rows))).rows.num_rows:
                    yield self._numbered(kept)
            if not file_rows:
                raise CatalogError(f"{file}: there is a header and no rows")
        for piece in self._products_without_image():
            yield self._numbered(piece)
        self._report()

    def source(self) -> "Source | None":
        """What was recognised and counted, once all is read; None for class folders."""
        if self._pictures is None:
            return None
        given = {name: getattr(self.section, name) for name in self.recognised.settings}
        return Source(
            self.section,
            self._head,
            self.recognised.name,
            given,
            dict(self._pictures.separators),
            self._pictures.counts,
            self._label_paths,
        )

    def labels_of_products(self) -> dict[str, str] | None:
        """Labels of records without an image, by product; None where the label of a row does not hold for others.

        It does where a layout says that rows of a group are one product, or ``catalog.without_image`` does.
        """
        is_product = self.section.group and (self.recognised.name or self.section.without_image == "count")
        return self._labels_of_products if is_product else None

    def _recognise(self, files: Sequence[str]) -> None:
        self._head = head_of(files[0], encoding=self.section.encoding, csv=csv_options(self.section))
        self.recognised = recognise(self.section, self._head.columns, self._head.kind)
        self.section = self.recognised.section
        if self._head.kind not in ("csv", "tsv"):
            ignored = self.section.non_default_fields() & {"columns", "delimiter", "quoting", "skip_lines", "bad_lines"}
            if ignored:
                names = ", ".join(f"catalog.{name}" for name in sorted(ignored))
                raise CatalogError(f"{self.uri}: {names} would be ignored: no file of it is CSV or TSV")

    def _piece(self, file: str, records: Records) -> Piece:
        if self._pictures is None:
            self.section = self._with_image_columns(records.table, file)
            self._pictures = PictureReader(self.section, with_layout=bool(self.recognised.name))
            self._check_image_names(records.table, file)
        if self._pictures.uses_image:
            image_columns(records.table, file, self.section)
        pictures = self._pictures.read(file, records)
        piece = meaning_of(file, pictures, self.section, self.uri, self.needs_label, products=self._products)
        for label, paths in piece.label_paths.items():
            self._label_paths.setdefault(label, set()).update(paths)
        return dataclasses.replace(piece, untyped=records.untyped)

    def _check_image_names(self, table: pa.Table, file: str) -> None:
        """Raise CatalogError where one of several columns that are named by hand is not there."""
        if "image" in self.recognised.settings or not self._pictures or not self._pictures.uses_image:
            return
        for name in self.section.images:
            parts = [name] if column_of(name, table.column_names) or "*" in name else name.split(",")
            for part in (part.strip() for part in parts):
                if part and not columns_of([part], table.column_names):
                    raise CatalogError(missing_column(part, "catalog.image", file, table.column_names))

    def _with_image_columns(self, table: pa.Table, file: str) -> CatalogSection:
        """The section with the image columns that are there; without one a template alone is enough."""
        by_template = PictureReader(self.section, with_layout=False).uses_image is False
        if (
            by_template
            and not columns_of(self.section.images, table.column_names)
            and "image" not in self.section.non_default_fields()
        ):
            return self.section
        return image_columns(table, file, self.section)

    def _kept(self, piece: Piece) -> Piece:
        """A piece without records that have no image; their products may have one in other records."""
        if self.section.without_image != "count" or not self.section.group:
            return piece
        empty = (piece.rows.column("uri").to_numpy() == "") & (piece.rows.column("fault_code").to_numpy() == "")
        self._with_image.update(piece.rows.column("group").to_numpy()[~empty].tolist())
        if not empty.any():
            return piece
        dropped = _part(piece, empty)
        told = zip(*(dropped.rows.column(name).to_pylist() for name in ("group", "label")), strict=True)
        for product, label in told:
            if label:
                self._labels_of_products.setdefault(product, label)
        self._without_image.append(dropped)
        return _part(piece, ~empty)

    def _products_without_image(self) -> Iterator[Piece]:
        """Records without an image whose product has none at all: error rows; the others are only counted."""
        for piece in self._without_image:
            lost = np.array([name not in self._with_image for name in piece.rows.column("group").to_pylist()])
            if lost.any():
                yield _part(piece, lost)

    def _numbered(self, piece: Piece) -> Piece:
        first, self._row_id = self._row_id, self._row_id + piece.rows.num_rows
        numbers = pa.array(np.arange(first, first + piece.rows.num_rows))
        return dataclasses.replace(piece, rows=piece.rows.add_column(0, "row_id", numbers))

    def _report(self) -> None:
        """Say what was recognised and counted, where a catalog is not one picture a row."""
        source = self.source()
        if source and not source.is_plain:
            events.emit("catalog", **source.facts())


def _part(piece: Piece, mask: np.ndarray) -> Piece:
    chosen = pa.array(mask)
    return dataclasses.replace(piece, rows=piece.rows.filter(chosen), table=piece.table.filter(chosen))


def _with_labels_of_products(rows: pa.Table, others: dict[str, str]) -> pa.Table:
    """A label that stands on one row of a product holds for its rows that have none."""
    labels = rows.column("label").to_numpy()
    empty = labels == ""
    if not empty.any():
        return rows
    groups = rows.column("group").to_numpy()
    known: dict[str, str] = {}
    for group, label in zip(groups[~empty].tolist(), labels[~empty].tolist(), strict=True):
        known.setdefault(group, label)
    known = others | known
    filled = [label or known.get(group, "") for group, label in zip(groups.tolist(), labels.tolist(), strict=True)]
    return rows.set_column(rows.column_names.index("label"), "label", pa.array(filled, pa.string()))


def csv_options(section: CatalogSection) -> CsvOptions:
    """How the CSV files of a catalog are read."""
    return CsvOptions(
        section.delimiter,
        section.quoting,
        tuple(section.columns),
        keep_bad_lines=section.bad_lines == "error",
        skip_lines=section.skip_lines,
    )


def _with_repeats(rows: pa.Table) -> pa.Table:
    """Append ``repeated``: True for every row whose id an earlier row of the same catalog has."""
    codes = rows.column("id").combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(rows.num_rows, dtype=bool)
    repeated[first] = False
    return rows.append_column("repeated", pa.array(repeated))


def _splits_of_folders(uri: str, files: Sequence[str]) -> dict[str, str]:
    """The split of every table, where every one of them lies in a folder named like one (``train/``, ``test/``)."""
    folders = {file: storage.parent(file)[len(uri) :].strip("!/").split("/")[0].lower() for file in files}
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
