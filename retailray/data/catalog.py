"""A catalog: one row per image, each with a row id, and what its columns mean."""

import dataclasses
import difflib
import functools
import os
import posixpath
import string
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events, storage
from retailray.config import CatalogSection
from retailray.data.access import access_of, refusal
from retailray.data.class_folders import class_folder_files, warn_of_equal_leaves
from retailray.data.corrections import correct, read_corrections, warn_of_strangers
from retailray.data.csv_files import CsvOptions, headerless_hint
from retailray.data.embedded_images import embedded_images, holds_images
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.labels import normalized_label
from retailray.data.tables import as_text, is_visible, stream_lines, table_files, table_suffix
from retailray.errors import CatalogError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


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
    labels = [_label(label, section) for label in said.column("label").to_pylist()]
    return said.set_column(said.column_names.index("label"), "label", pa.array(labels, pa.string()))


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows of one file of a catalog: its columns as they are read, and what they mean (without ``repeated``).

    ``table`` has the same rows as ``rows``, in its order.
    """

    file: str
    table: pa.Table
    rows: pa.Table

    @property
    def untyped(self) -> bool:
        """True where all columns are read as text."""
        return table_suffix(self.file) in (".csv", ".tsv")


def stream_catalog(
    section: CatalogSection, *, uri: str | None = None, needs_label: bool = True, first_row_id: int = 0
) -> Iterator[Piece]:
    """The same a piece at a time, so that memory does not grow with the catalog (class folders are listed whole).

    Text columns of CSV are text still: see :class:`retailray.data.tables.LosslessTypes`.
    """
    uri = uri or section.uri
    storage.check_readable(uri)
    files = table_files(uri)
    if not files:
        yield _numbered(_class_folders(uri, section), first_row_id)
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
            image = image or _image_column(table, file, section)
            _require(table, image, "catalog.image", file)
            piece = _meaning(file, table, image, section, uri, needs_label, lines=lines)
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


def meaningful_columns(section: CatalogSection) -> set[str]:
    """Columns that are names to us, and so stay text whatever is in them."""
    named = {section.image, section.id, section.label, section.group, section.split}
    images = set() if "image" in section.non_default_fields() else {"file_name"}
    return {name for name in named if name} | images


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


def with_split(rows: pa.Table, name: str) -> pa.Table:
    """Return the ``rows`` of a catalog as all of one split."""
    at = rows.column_names.index("split")
    return rows.set_column(at, "split", pa.array([name] * rows.num_rows, pa.string()))


def visible_images(folder: str, files: Iterable[str]) -> list[str]:
    """The images among files below a folder, sorted; pictures in run directories of ours do not count."""
    return sorted(name for name in files if is_visible(folder, name) and name.lower().endswith(IMAGE_SUFFIXES))


def _image_column(table: pa.Table, file: str, section: CatalogSection) -> str:
    chosen = section.image
    if chosen not in table.column_names and "image" not in section.non_default_fields():
        chosen = "file_name" if "file_name" in table.column_names else chosen  # Hugging Face's imagefolder
    _require(table, chosen, "catalog.image", file)
    return chosen


def _require(table: pa.Table, name: str, key: str, file: str) -> None:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = headerless_hint(table.column_names) if table_suffix(file) in (".csv", ".tsv") else ""
        columns = f"; did you mean {near[0]!r}?" if near else f"; the columns are {', '.join(table.column_names)}"
        raise CatalogError(f"{file}: {key} = {name!r}: there is no such column" + (hint or columns))


def _text(table: pa.Table, file: str, name: str, key: str) -> list[str]:
    """A column as text. Raises CatalogError, with the setting ``key`` that names it."""
    _require(table, name, key, file)
    try:
        return as_text(table.column(name)).to_pylist()
    except (TypeError, pa.ArrowException) as error:
        raise CatalogError(f"{file}: {key} = {name!r}: {error}") from error


def _meaning(
    file: str, table: pa.Table, image: str, section: CatalogSection, uri: str, needs_label: bool, *, lines: np.ndarray
) -> Piece:
    """The ``rows`` of a piece of one file; ``lines``: where each of them begins."""
    text = functools.partial(_text, table, file)
    folder = storage.parent(file)
    root = section.root or folder
    # files of one catalog in several folders may use the same relative paths for different images
    prefix = folder[len(uri) :].strip("/") if section.root is None and folder.startswith(uri) else ""
    if holds_images(table.column(image)):
        table, images, paths, addresses = embedded_images(file, table, image, section, root, lines)
    else:
        images = text(image, "catalog.image")
        paths = _expand_template(file, table, images, section)
        addresses = [storage.join(root, path) if path else "" for path in paths]
    nothing = [""] * table.num_rows
    labels = text(section.label, "catalog.label") if needs_label or section.label in table.column_names else nothing
    own = _own_ids(file, paths, lines, prefix)
    # a row without an id still needs one of its own, and rows without a product are not one product
    ids = _or_else(text(section.id, "catalog.id"), own) if section.id else own
    groups = _or_else(text(section.group, "catalog.group"), ids) if section.group else ids
    splits = _splits(file, text(section.split, "catalog.split"), lines) if section.split else nothing
    columns = {
        "id": ids,
        "image": images,
        "uri": addresses,
        "denied_reason": [refusal(path, to, file, root, section) for path, to in zip(paths, addresses, strict=True)],
        "label": [_label(label, section) for label in labels],
        "group": groups,
        "split": splits,
        "file": [file] * table.num_rows,
    }
    rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return Piece(file, table, rows.append_column("line", pa.array(lines)))


def _own_ids(file: str, paths: Sequence[str], lines: np.ndarray, prefix: str) -> list[str]:
    """The path of each row's image; where there is none, file and line."""
    name = posixpath.basename(file)
    numbered = zip(paths, lines.tolist(), strict=True)
    return [_below(prefix, path) if path else f"{name}:{line}" for path, line in numbered]


def _or_else(values: Sequence[str], others: Sequence[str]) -> list[str]:
    return [value or other for value, other in zip(values, others, strict=True)]


def _below(prefix: str, path: str) -> str:
    """An id that tells equal paths of several folders apart; empty segments are part of a key."""
    return f"{prefix}/{path}" if prefix and "//" in path and not storage.is_uri(path) else storage.join(prefix, path)


def _label(label: str, section: CatalogSection) -> str:
    """A label as the settings rename it."""
    if label in section.label_map:
        return section.label_map[label]
    if section.normalize_labels:
        label = normalized_label(label)
    return section.label_map.get(label, label)


def _splits(file: str, values: list[str], lines: np.ndarray) -> list[str]:
    named = [SPLIT_NAMES.get(value.strip().lower(), "") for value in values]
    if "" in named:
        at = named.index("")
        raise CatalogError(
            f"{file}: line {lines[at]}: split {values[at]!r} is none of {', '.join(sorted(SPLIT_NAMES))}"
        )
    return named


def _expand_template(file: str, table: pa.Table, images: list[str], section: CatalogSection) -> list[str]:
    """Image paths by ``catalog.image_template``; '' where the image column is empty."""
    if section.image_template == "{image}":
        return [image if image.strip() else "" for image in images]
    template = section.image_template
    columns = {"stem": [os.path.basename(file).split(".")[0]] * len(images), "image": images}
    try:
        wanted = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        for name in wanted - columns.keys():
            _require(table, name, "catalog.image_template", file)
            columns[name] = as_text(table.column(name)).to_pylist()
        return [
            template.format(**{name: columns[name][index] for name in wanted}) if image.strip() else ""
            for index, image in enumerate(images)
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CatalogError(
            f"{file}: catalog.image_template = {template!r}: {error}; it takes column names in braces, as text"
        ) from error


def _class_folders(uri: str, section: CatalogSection) -> Piece:
    """Folders as labels: ``uri/<label>/<image>``, at any depth, below folders of splits or not (train/mug/1.jpg)."""
    read = {"uri", "label_map", "validation_uri", "test_uri", "max_pixels", "max_aspect_ratio", "max_bytes", "encoding"}
    ignored = section.non_default_fields() - read - {"corrections", "folder_labels", "normalize_labels", "allow"}
    if ignored:
        names = ", ".join(f"catalog.{name}" for name in sorted(ignored))
        raise CatalogError(
            f"{uri}: there is no table in it, so it is read as class folders, and {names} would be ignored"
        )
    files = class_folder_files(uri)
    found = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise CatalogError(f"{uri}: contains neither a table nor images")
    if len(found) < len(files):
        events.emit("warning", not_read=len(files) - len(found), note="files without the suffix of an image format")
    relative = [name[len(uri) :].lstrip("/") for name in found]
    tops = [SPLIT_NAMES.get(name.split("/")[0].lower(), "") if name.count("/") > 1 else "" for name in relative]
    splits = tops if all(tops) else [""] * len(relative)
    folders = [
        os.path.dirname(name.partition("/")[2] if split else name) for name, split in zip(relative, splits, strict=True)
    ]
    if section.folder_labels == "leaf":
        warn_of_equal_leaves(folders)
        folders = [os.path.basename(folder) for folder in folders]
    table = pa.table({"image": relative, "label": folders})
    plain = CatalogSection(uri=uri, label_map=section.label_map, normalize_labels=section.normalize_labels)
    piece = _meaning(f"{uri}/", table, "image", plain, uri, True, lines=np.arange(1, len(relative) + 1))
    at = piece.rows.column_names.index("split")
    return Piece(uri, table, piece.rows.set_column(at, "split", pa.array(splits, pa.string())))


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
