"""What the columns of a catalog's tables mean: image, id, label, group and split of every row."""

import dataclasses
import difflib
import functools
import os
import posixpath
import string
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import refusal
from retailray.data.arrow_tables import as_text
from retailray.data.csv_files import headerless_hint
from retailray.data.embedded_images import embedded_images, holds_images
from retailray.data.labels import normalized_label
from retailray.data.tables import table_suffix
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


def meaningful_columns(section: CatalogSection) -> set[str]:
    """Columns that are names to us, and so stay text whatever is in them."""
    named = {section.image, section.id, section.label, section.group, section.split}
    images = set() if "image" in section.non_default_fields() else {"file_name"}
    return {name for name in named if name} | images


def with_split(rows: pa.Table, name: str) -> pa.Table:
    """Return the ``rows`` of a catalog as all of one split."""
    at = rows.column_names.index("split")
    return rows.set_column(at, "split", pa.array([name] * rows.num_rows, pa.string()))


def image_column(table: pa.Table, file: str, section: CatalogSection) -> str:
    chosen = section.image
    if chosen not in table.column_names and "image" not in section.non_default_fields():
        chosen = "file_name" if "file_name" in table.column_names else chosen  # Hugging Face's imagefolder
    require(table, chosen, "catalog.image", file)
    return chosen


def require(table: pa.Table, name: str, key: str, file: str) -> None:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = headerless_hint(table.column_names) if table_suffix(file) in (".csv", ".tsv") else ""
        columns = f"; did you mean {near[0]!r}?" if near else f"; the columns are {', '.join(table.column_names)}"
        raise CatalogError(f"{file}: {key} = {name!r}: there is no such column" + (hint or columns))


def _text(table: pa.Table, file: str, name: str, key: str) -> list[str]:
    """A column as text. Raises CatalogError, with the setting ``key`` that names it."""
    require(table, name, key, file)
    try:
        return as_text(table.column(name)).to_pylist()
    except (TypeError, pa.ArrowException) as error:
        raise CatalogError(f"{file}: {key} = {name!r}: {error}") from error


def meaning_of(
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
        "label": [renamed_label(label, section) for label in labels],
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


def renamed_label(label: str, section: CatalogSection) -> str:
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
            require(table, name, "catalog.image_template", file)
            columns[name] = as_text(table.column(name)).to_pylist()
        return [
            template.format(**{name: columns[name][index] for name in wanted}) if image.strip() else ""
            for index, image in enumerate(images)
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CatalogError(
            f"{file}: catalog.image_template = {template!r}: {error}; it takes column names in braces, as text"
        ) from error
