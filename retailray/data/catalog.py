"""A catalog: the user's table, untouched, and beside it what each row means to us."""

import dataclasses
import difflib
import os
import string
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.corrections import correct, read_corrections
from retailray.data.tables import LosslessTypes, as_text, stream_table, table_files, table_suffix, visible_files
from retailray.errors import CatalogError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
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
    """``table`` holds the input columns with their types; ``rows``, aligned with it, what they mean.

    Columns of ``rows`` (all text): ``id``, ``image`` (as the catalog says it), ``uri`` (where it is; '' if the row
    names none), ``refused`` (why it may not be read there; '' if it may), ``label`` ('' if none), ``group``, ``split``
    ('' if the table does not say), ``file``; and ``line`` (int64, counted from 1 with the header; for Parquet the row)
    and ``repeated`` (bool: an earlier row has the id).
    """

    uri: str
    table: pa.Table
    rows: pa.Table

    def __len__(self) -> int:
        return self.rows.num_rows

    def select(self, mask: np.ndarray) -> "Catalog":
        keep = pa.array(mask)
        return Catalog(self.uri, self.table.filter(keep), self.rows.filter(keep))

    def take(self, indices: np.ndarray) -> "Catalog":
        return Catalog(self.uri, self.table.take(indices), self.rows.take(indices))

    def column(self, name: str) -> np.ndarray:
        """One column of ``rows`` as an object (or int64) array."""
        return self.rows.column(name).to_numpy()


def read_catalog(section: CatalogSection, *, uri: str | None = None, needs_label: bool = True) -> Catalog:
    """Read the catalog that a config section describes (``uri`` overrides the section's, for a split's own table).

    Raises:
        CatalogError: naming file, line, column and value, and what to set.
        StorageError: the address cannot be reached.
    """
    pieces = list(stream_catalog(section, uri=uri, needs_label=needs_label))
    types = LosslessTypes(keep_text=meaningful_columns(section))
    for piece in pieces:
        if piece.untyped:
            types.look(piece.table)
    uri = uri or section.uri
    try:
        tables = [types.cast(piece.table) if piece.untyped else piece.table for piece in pieces]
        merged = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise CatalogError(f"{uri}: its files disagree on column types ({error})") from error
    rows = _with_repeats(pa.concat_tables([piece.rows for piece in pieces]))
    return Catalog(uri, merged, correct(rows, read_corrections(section.corrections)) if section.corrections else rows)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows of one file of a catalog: its columns as they are read, and what they mean (without ``repeated``)."""

    file: str
    table: pa.Table
    rows: pa.Table

    @property
    def untyped(self) -> bool:
        """True where all columns are read as text."""
        return table_suffix(self.file) in (".csv", ".tsv")


def stream_catalog(section: CatalogSection, *, uri: str | None = None, needs_label: bool = True) -> Iterator[Piece]:
    """The same a piece at a time, so that memory does not grow with the catalog (class folders are listed whole).

    Text columns of CSV are text still: see :class:`retailray.data.tables.LosslessTypes`.
    """
    uri = uri or section.uri
    storage.check_readable(uri)
    files = table_files(uri)
    if not files:
        yield _class_folders(uri, section)
        return
    splits = {} if section.split or len(files) == 1 else _splits_of_folders(uri, files)
    image = None
    for file in files:
        line = 1 if table_suffix(file) in (".parquet", ".pq", ".jsonl", ".ndjson") else 2
        for table in stream_table(file, encoding=section.encoding):
            image = image or _image_column(table, file, section)
            _require(table, image, "catalog.image", file)
            rows = _meaning(file, table, image, section, uri, needs_label, first_line=line)
            line += table.num_rows
            yield Piece(file, table, _with_split(rows, splits[file]) if splits else rows)


def meaningful_columns(section: CatalogSection) -> set[str]:
    """Columns that are names to us, and so stay text whatever is in them."""
    named = {section.image, section.id, section.label, section.group, section.split}
    images = set() if "image" in section.given() else {"file_name"}
    return {name for name in named if name} | images


def _with_repeats(rows: pa.Table) -> pa.Table:
    """Append ``repeated``: True for every row whose id an earlier row of the same catalog has."""
    _, first = np.unique(rows.column("id").to_numpy().astype(str), return_index=True)
    repeated = np.ones(rows.num_rows, dtype=bool)
    repeated[first] = False
    return rows.append_column("repeated", pa.array(repeated))


def _splits_of_folders(uri: str, files: Sequence[str]) -> dict[str, str]:
    """The split of every table, where every one of them lies in a folder named like one (``train/``, ``test/``)."""
    folders = {file: storage.parent(file)[len(uri) :].strip("/").split("/")[0].lower() for file in files}
    names = {file: SPLIT_NAMES.get(folder, "") for file, folder in folders.items()}
    return names if all(names.values()) else {}


def _with_split(rows: pa.Table, name: str) -> pa.Table:
    at = rows.column_names.index("split")
    return rows.set_column(at, "split", pa.array([name] * rows.num_rows, pa.string()))


def image_files(uri: str) -> list[str]:
    """Images below a folder, sorted; pictures in run directories of ours do not count."""
    return sorted(name for name in visible_files(uri) if name.lower().endswith(IMAGE_SUFFIXES))


def _image_column(table: pa.Table, file: str, section: CatalogSection) -> str:
    chosen = section.image
    if chosen not in table.column_names and "image" not in section.given():
        chosen = "file_name" if "file_name" in table.column_names else chosen  # Hugging Face's imagefolder
    _require(table, chosen, "catalog.image", file)
    return chosen


def _require(table: pa.Table, name: str, key: str, file: str) -> None:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        raise CatalogError(
            f"{file}: {key} = {name!r}: there is no such column"
            + (f"; did you mean {near[0]!r}?" if near else f"; the columns are {', '.join(table.column_names)}")
        )


def _meaning(
    file: str,
    table: pa.Table,
    image: str,
    section: CatalogSection,
    uri: str,
    needs_label: bool,
    *,
    first_line: int,
) -> pa.Table:
    """The ``rows`` of a piece of one file that begins at ``first_line``."""

    def text(name: str, key: str) -> list[str]:
        _require(table, name, key, file)
        try:
            return as_text(table.column(name)).to_pylist()
        except (TypeError, pa.ArrowException) as error:
            raise CatalogError(f"{file}: {key} = {name!r}: {error}") from error

    num_rows = table.num_rows
    folder = storage.parent(file)
    images = text(image, "catalog.image")
    paths = _expand_template(file, table, images, section)
    has_label = needs_label or section.label in table.column_names
    labels = text(section.label, "catalog.label") if has_label else [""] * num_rows
    # files of one catalog in several folders may use the same relative paths for different images
    prefix = folder[len(uri) :].strip("/") if section.root is None and folder.startswith(uri) else ""
    ids = [storage.join(prefix, path) if prefix else path for path in paths]
    if section.id:  # a row without an id still needs one of its own
        ids = [value or path for value, path in zip(text(section.id, "catalog.id"), ids, strict=True)]
    groups = ids
    if section.group:  # rows without a product are not one product
        groups = [value or own for value, own in zip(text(section.group, "catalog.group"), ids, strict=True)]
    root = section.root or folder
    addresses = [storage.join(root, path) if path else "" for path in paths]
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "image": pa.array(images, pa.string()),
            "uri": pa.array(addresses, pa.string()),
            "refused": pa.array(
                [_refusal(path, address, file, root, section) for path, address in zip(paths, addresses, strict=True)],
                pa.string(),
            ),
            "label": pa.array([section.label_map.get(label, label) for label in labels], pa.string()),
            "group": pa.array(groups, pa.string()),
            "split": pa.array(_splits(file, text(section.split, "catalog.split"), first_line), pa.string())
            if section.split
            else pa.array([""] * num_rows, pa.string()),
            "file": pa.array([file] * num_rows, pa.string()),
            "line": pa.array(np.arange(first_line, first_line + num_rows)),
        }
    )


def _refusal(path: str, address: str, file: str, root: str, section: CatalogSection) -> str:
    """Why an image may not be read; '' if it may."""
    below = address.startswith(root.rstrip("/") + "/")
    if not path or below or any(address.startswith(allowed) for allowed in section.allow):
        return ""
    if section.allow:
        return f"{address} is neither below {root} nor in catalog.allow"
    if not storage.is_uri(path) and not path.startswith("/"):
        return f"{path!r} leaves {root}; set catalog.root to the folder that holds all images, or catalog.allow"
    if storage.is_local(address) and not storage.is_local(file):
        return f"{path!r} is a file of the machine that reads it, and the catalog is not; name it in catalog.allow"
    return ""


def _splits(file: str, values: list[str], first_line: int) -> list[str]:
    named = [SPLIT_NAMES.get(value.strip().lower(), "") for value in values]
    if "" in named:
        at = named.index("")
        raise CatalogError(
            f"{file}: line {at + first_line}: split {values[at]!r} is none of {', '.join(sorted(SPLIT_NAMES))}"
        )
    return named


def _expand_template(file: str, table: pa.Table, images: list[str], section: CatalogSection) -> list[str]:
    """Image paths by ``catalog.image_template``; '' where the image column is empty."""
    if section.image_template == "{image}":
        return [image.strip() for image in images]
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
    """Folders as labels: ``uri/<label>/<image>``, at any depth; the label is the innermost folder's name."""
    ignored = section.given() - {"uri", "label_map", "validation_uri", "test_uri", "max_pixels", "max_aspect_ratio"}
    ignored -= {"encoding", "corrections"}
    if ignored:
        names = ", ".join(f"catalog.{name}" for name in sorted(ignored))
        raise CatalogError(
            f"{uri}: there is no table in it, so it is read as class folders, and {names} would be ignored"
        )
    found = image_files(uri)
    if not found:
        raise CatalogError(f"{uri}: neither a table nor images in it")
    relative = [name[len(uri) :].lstrip("/") for name in found]
    labels = [os.path.basename(os.path.dirname(name)) for name in relative]
    table = pa.table({"image": relative, "label": labels})
    section = CatalogSection(uri=uri, label_map=section.label_map)
    rows = _meaning(f"{uri}/", table, "image", section, uri, True, first_line=2)
    tops = [SPLIT_NAMES.get(name.split("/")[0].lower(), "") if name.count("/") > 1 else "" for name in relative]
    if all(tops):  # train/mug/1.jpg
        rows = rows.set_column(rows.column_names.index("split"), "split", pa.array(tops, pa.string()))
    return Piece(uri, table, rows)


def concat_rows(parts: list[Catalog]) -> Catalog:
    """One catalog after the other; their meaning only, since their own columns may differ."""
    rows = pa.concat_tables([part.rows for part in parts])
    return Catalog(parts[0].uri, pa.table({"row": np.arange(rows.num_rows)}), rows)


def count_labels(labels: np.ndarray) -> dict[str, int]:
    """Rows a label, '' left out, sorted by name."""
    counts = pc.value_counts(pa.array(labels, pa.string()))
    return {
        row["values"]: row["counts"]
        for row in sorted(counts.to_pylist(), key=lambda row: row["values"])
        if row["values"]
    }
