"""What the columns of a catalog's tables mean: image, id, label, group and split of every row."""

import dataclasses
import difflib
import os
import posixpath
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import refusal
from retailray.data.arrow_tables import as_text
from retailray.data.cells import label_in, lookup
from retailray.data.csv_files import headerless_hint
from retailray.data.image_files import SUFFIXES
from retailray.data.labels import normalized_label
from retailray.data.paths import column_of, columns_of
from retailray.data.pictures import ADDRESS, INDEX, ITEM_ID, Pictures
from retailray.data.tables import is_archive, table_suffix
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
DELIMITER_NAMES = {"\t": "tab", " ": "whitespace"}
UNASSIGNED = "unassigned"  # rows that are divided as those of a catalog without splits


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows of one file of a catalog: its columns as they are read, and what they mean (without ``repeated``).

    ``table`` has the same rows as ``rows``, in its order.
    """

    file: str
    table: pa.Table
    rows: pa.Table
    untyped: bool = False  # all columns are read as text
    label_paths: Mapping[str, set[tuple[str, ...]]] = dataclasses.field(default_factory=dict)  # see label_paths


def meaningful_columns(section: CatalogSection) -> set[str]:
    """Columns that are names to us, and so stay text whatever is in them."""
    named = {*section.images, section.id, section.label, section.group, section.split, section.parent}
    images = set() if "image" in section.non_default_fields() else {"file_name"}
    return {name for name in named if name} | images | {ADDRESS, ITEM_ID}


def with_split(rows: pa.Table, name: str) -> pa.Table:
    """Return the ``rows`` of a catalog as all of one split."""
    at = rows.column_names.index("split")
    return rows.set_column(at, "split", pa.array([name] * rows.num_rows, pa.string()))


def image_columns(table: pa.Table, file: str, section: CatalogSection) -> CatalogSection:
    """The section with the columns of images that are there: ``file_name`` where ``image`` is not.

    Raises:
        CatalogError: there is none of those that ``catalog.image`` names; with the columns, and what to set.
    """
    columns = table.column_names
    if columns_of(section.images, columns):
        return section
    if "image" not in section.non_default_fields() and "file_name" in columns:  # Hugging Face's imagefolder
        return section.model_copy(update={"image": "file_name"})
    told = missing_column(section.image, "catalog.image", file, columns)
    raise CatalogError(told + _first_values(table))


def _first_values(table: pa.Table) -> str:
    """What to try where nothing is known of a table: its columns with their first values, those of pictures first."""
    first = {name: table.column(name)[0].as_py() for name in table.column_names} if table.num_rows else {}
    shown = {name: " ".join(str(value).split())[:40] for name, value in first.items() if value not in (None, "")}
    pictures = [name for name, text in shown.items() if "://" in text or any(end in text.lower() for end in SUFFIXES)]
    if not pictures or "image" in shown or table.num_columns == 1 or headerless_hint(table.column_names):
        return ""
    values = ", ".join(f"{name} = {text!r}" for name, text in list(shown.items())[:8])
    return (
        f". Its first record: {values}. Try --catalog.image {pictures[0]} and --catalog.label with the column of labels"
    )


def missing_column(name: str, key: str, file: str, columns: Sequence[str]) -> str:
    """What to say of a column that is not there."""
    if len(columns) == 1 and (sign := next((one for one in (";", ",", "\t", "|", " ") if one in columns[0]), None)):
        return (
            f"{file}: {key} = {name!r}: there is no such column; all of the header is one column, {columns[0][:80]!r}: "
            f"set catalog.delimiter to {DELIMITER_NAMES.get(sign, sign)}"
        )
    near = difflib.get_close_matches(name, columns, n=1)
    hint = headerless_hint(list(columns)) if table_suffix(file) not in (".parquet", ".pq", ".jsonl", ".ndjson") else ""
    there = f"; did you mean {near[0]!r}?" if near else f"; the columns are {', '.join(columns)}"
    return f"{file}: {key} = {name!r}: there is no such column" + (hint or there)


def require(table: pa.Table, name: str, key: str, file: str) -> None:
    if column_of(name, table.column_names) is None:
        raise CatalogError(missing_column(name, key, file, table.column_names))


def _text(table: pa.Table, file: str, name: str, key: str) -> list[str]:
    """A column as text. Raises CatalogError, with the setting ``key`` that names it."""
    require(table, name, key, file)
    column, path = column_of(name, table.column_names) or (name, [])
    if path:
        found = [lookup(value, path) for value in table.column(column).to_pylist()]
        if found and all(one is None for one in found) and not pa.types.is_nested(table.schema.field(column).type):
            raise CatalogError(f"{file}: {key} = {name!r}: column {column!r} has no nested values")
        return ["" if one is None else one if isinstance(one, str) else str(one) for one in found]
    try:
        return as_text(table.column(column)).to_pylist()
    except (TypeError, pa.ArrowException) as error:
        raise CatalogError(f"{file}: {key} = {name!r}: {error}") from error


def _labels(table: pa.Table, file: str, section: CatalogSection, needs_label: bool) -> list[str]:
    """The label of every row; '' if it has none."""
    found = column_of(section.label, table.column_names)
    if found is None and not needs_label:
        return [""] * table.num_rows
    if found and (found[1] or pa.types.is_nested(table.schema.field(found[0]).type)):
        values = [lookup(value, found[1]) for value in table.column(found[0]).to_pylist()]
    else:
        values = _text(table, file, section.label, "catalog.label")
        if not section.label_separator and not section.label_list_separator:
            return values
    how = section.label_separator, section.label_level, section.label_list_separator
    found_in: dict[str, str] = {}  # few labels stand on many rows
    labels = []
    for value in values:
        if not isinstance(value, str):
            labels.append(label_in(value, *how))
            continue
        if value not in found_in:
            found_in[value] = label_in(value, *how)
        labels.append(found_in[value])
    return labels


def label_paths(
    table: pa.Table, file: str, section: CatalogSection, labels: Sequence[str]
) -> dict[str, set[tuple[str, ...]]]:
    """The paths, from the root down to the label itself, that rows say a label has: by ``catalog.parent``, or by
    labels that are paths."""
    found: dict[str, set[tuple[str, ...]]] = {}
    if section.parent:
        if column_of(section.parent, table.column_names) is None:
            return found  # which matters to commands that make a bundle, and they tell
        parents = _text(table, file, section.parent, "catalog.parent")
        for label, parent in set(zip(labels, parents, strict=True)):
            if label and parent:
                levels = parent.split(section.label_separator) if section.label_separator else [parent]
                above = [renamed_label(level.strip(), section) for level in levels if level.strip()]
                found.setdefault(label, set()).add((*above, label))
        return found
    column = column_of(section.label, table.column_names)
    if not section.label_separator or column is None or column[1]:
        return found
    between = f" {section.label_separator.strip()} "
    how = section.label_separator, "path", section.label_list_separator
    texts = table.column(column[0]).to_pylist()
    for label, text in {(label, text) for label, text in zip(labels, texts, strict=True) if isinstance(text, str)}:
        levels = label_in(text, *how).split(between)
        if section.label_level.isdigit():
            levels = levels[: int(section.label_level)]
        if not label or section.label_level == "first":
            continue
        above = [renamed_label(level, section) for level in levels[:-1]]
        whole = section.label_level == "path" and label == between.join(levels)  # the label is the path
        found.setdefault(label, set()).add((*above, levels[-1] if whole else label))
    return found


def meaning_of(
    file: str, pictures: Pictures, section: CatalogSection, uri: str, needs_label: bool, *, products: Counter[str]
) -> Piece:
    """The ``rows`` of a piece of one file. ``products``: how many pictures of each product came before, which grows."""
    table = pictures.table
    folder = f"{file}!" if is_archive(file) else storage.parent(file)
    root = section.root or folder
    # files of one catalog in several folders may use the same relative paths for different images
    prefix = folder[len(uri) :].strip("!/") if section.root is None and folder.startswith(uri) else ""
    if pictures.places:
        paths, addresses = pictures.places
    else:
        paths = _expand_template(file, table, pictures.images, section)
        addresses = [storage.join(root, path) if path else "" for path in paths]
    own = _own_ids(file, paths, pictures.lines, prefix)
    index, ids, groups = _names(file, pictures, section, own, products)
    splits = [""] * table.num_rows
    if section.split:
        splits = _splits(file, _text(table, file, section.split, "catalog.split"), pictures)
    denied = [refusal(path, to, file, root, section) for path, to in zip(paths, addresses, strict=True)]
    columns = {
        "id": ids,
        "image": paths if pictures.by_template_alone else pictures.images,
        "uri": addresses,
        "denied_reason": _or_else(pictures.faults, denied),
        "fault_code": pictures.fault_codes,
        "label": [renamed_label(label, section) for label in _labels(table, file, section, needs_label)],
        "group": groups,
        "split": splits,
        "file": [file] * table.num_rows,
    }
    rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    # those who need no label make no bundle, and paths are for bundles
    branches = label_paths(table, file, section, columns["label"]) if needs_label else {}
    table = table if index is None else _with_pictures(table, ids, index, addresses)
    return Piece(file, table, rows.append_column("line", pa.array(pictures.lines)), label_paths=branches)


def _names(
    file: str, pictures: Pictures, section: CatalogSection, own: Sequence[str], products: Counter[str]
) -> tuple[np.ndarray | None, list[str], list[str]]:
    """The number of each picture within its record or product (None: every record has one), row ids and products."""
    table, index = pictures.table, pictures.index
    bases = _text(table, file, section.id, "catalog.id") if section.id else None
    products_of = _text(table, file, section.group, "catalog.group") if section.group else None
    if index is None:
        # a row without an id still needs one of its own, and rows without a product are not one product
        ids = _or_else(bases, own) if bases else list(own)
        return None, ids, _or_else(products_of, ids) if products_of else ids
    # without a name the product is the record, whose name is its first picture
    groups = _or_else(products_of or bases or [""] * len(own), _firsts(own, index))
    if bases:
        return index, _numbered_ids(bases, index, own, pictures.images, first=False), groups
    if products_of and pictures.by_settings:
        index = _within_products(products_of, pictures.images, products)
        return index, _numbered_ids(products_of, index, own, pictures.images, first=True), groups
    return index, list(own), groups


def _numbered_ids(
    names: Sequence[str], index: np.ndarray, own: Sequence[str], images: Sequence[str], *, first: bool
) -> list[str]:
    """Name of the record (or product) and number of the picture, of the ``first`` one too; its own path where there is
    no name. A record's first picture keeps its name when others come."""
    rows = zip(names, index.tolist(), own, images, strict=True)
    return [
        (f"{name}/{number}" if number or first else name) if name and (image or not first) else path
        for name, number, path, image in rows
    ]


def _within_products(products: Sequence[str], images: Sequence[str], counts: Counter[str]) -> np.ndarray:
    """The number of each row's picture within its product, from 0, int64 ``(N,)``; ``counts`` goes on."""
    numbers = []
    for name, image in zip(products, images, strict=True):
        numbers.append(counts[name])
        counts[name] += bool(image)
    return np.array(numbers, dtype=np.int64)


def _firsts(own: Sequence[str], index: np.ndarray) -> list[str]:
    """For every row the path of its record's first picture."""
    firsts: list[str] = []
    for path, number in zip(own, index.tolist(), strict=True):
        firsts.append(path if number == 0 else firsts[-1])
    return firsts


def _with_pictures(table: pa.Table, ids: Sequence[str], index: np.ndarray, addresses: Sequence[str]) -> pa.Table:
    """The user's columns with the id, number and address of each row's picture, unless they have such columns."""
    added = {ITEM_ID: pa.array(ids, pa.string()), INDEX: pa.array(index), ADDRESS: pa.array(addresses, pa.string())}
    for name, values in added.items():
        if name not in table.column_names:
            table = table.append_column(name, values)
    return table


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


def _splits(file: str, values: list[str], pictures: Pictures) -> list[str]:
    values = [UNASSIGNED if code else value for code, value in zip(pictures.fault_codes, values, strict=True)]
    named = [SPLIT_NAMES.get(value.strip().lower(), "") for value in values]
    named = [
        UNASSIGNED if value.strip().lower() == UNASSIGNED else name for value, name in zip(values, named, strict=True)
    ]
    if "" in named:
        at = named.index("")
        raise CatalogError(
            f"{file}: line {pictures.lines[at]}: split {values[at]!r} is none of {', '.join(sorted(SPLIT_NAMES))}"
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
            columns[name] = _text(table, file, name, "catalog.image_template")
        return [
            template.format(**{name: columns[name][index] for name in wanted}) if image.strip() else ""
            for index, image in enumerate(images)
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CatalogError(
            f"{file}: catalog.image_template = {template!r}: {error}; it takes column names in braces, as text"
        ) from error
