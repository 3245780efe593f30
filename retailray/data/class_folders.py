"""Folders as labels: which files lie in them, what they say of an image, and which folders share a name."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from retailray import events, storage
from retailray.config import CatalogSection
from retailray.data.columns import SPLIT_NAMES, Piece, meaning_of
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.pictures import plain_pictures
from retailray.data.recognition import catalog_files
from retailray.errors import CatalogError


def read_class_folders(uri: str, section: CatalogSection) -> Piece:
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
    if not any(folders):
        events.emit("warning", uri=uri, note="the pictures lie in the folder itself, so they have no labels")
    if section.folder_labels == "leaf":
        warn_of_equal_leaves(folders)
        folders = [os.path.basename(folder) for folder in folders]
    table = pa.table({"image": relative, "label": folders})
    plain = CatalogSection(uri=uri, label_map=section.label_map, normalize_labels=section.normalize_labels)
    pictures = plain_pictures(table, relative, np.arange(1, len(relative) + 1))
    piece = meaning_of(f"{uri}/", pictures, plain, uri, True, products=Counter())
    at = piece.rows.column_names.index("split")
    return Piece(uri, table, piece.rows.set_column(at, "split", pa.array(splits, pa.string())))


def class_folder_files(uri: str) -> list[str]:
    """Files below a folder of class folders, sorted; links to folders on this machine are followed.

    Not what is hidden, and not what lies in folders that begin with ``_`` or are runs of ours.
    """
    if uri.endswith("!"):
        archive = uri.removesuffix("!")
        files = [storage.member_address(archive, name) for name in storage.read_index(archive)]
    elif storage.is_local(uri):
        return sorted(_walk(uri, frozenset()))
    else:
        files = list(storage.list_files(uri))
    parts = {name: name[len(uri) :].lstrip("/").split("/") for name in files}
    return sorted(
        name
        for name, (*folders, last) in parts.items()
        if not any(map(_is_hidden, folders)) and not last.startswith(".")
    )


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Files below a folder; a link back to one of the folders ``above`` is not followed."""
    status = os.stat(folder)
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not _is_hidden(entry.name):
                    yield from _walk(entry.path, above | {identity})
            elif not entry.name.startswith("."):
                yield entry.path


def _is_hidden(folder: str) -> bool:
    return folder.startswith(("_", ".", "run_id="))


def unread_suffixes(section: CatalogSection) -> dict[str, int]:
    """Files by suffix that lie in class folders and are not read, since their names are of no image format."""
    folders = [
        uri
        for uri in (section.uri, section.validation_uri, section.test_uri)
        if uri and not catalog_files(uri, encoding=section.encoding)
    ]
    names = [name for folder in folders for name in class_folder_files(folder)]
    unread = [name for name in names if not name.lower().endswith(IMAGE_SUFFIXES)]
    return dict(sorted(Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in unread).items()))


def equal_leaves(folders: Sequence[str]) -> dict[str, list[str]]:
    """Folders of different parents that have one name, by that name: as labels they are one."""
    parents: dict[str, set[str]] = defaultdict(set)
    for folder in set(folders):
        parents[os.path.basename(folder)].add(folder)
    return {name: sorted(members) for name, members in sorted(parents.items()) if len(members) > 1}


def warn_of_equal_leaves(folders: Sequence[str]) -> None:
    """Emit a warning for each name of :func:`equal_leaves`, ten at most."""
    for name, members in list(equal_leaves(folders).items())[:10]:
        events.emit(
            "warning",
            label=name,
            folders=members[:10],
            note="these folders are one label; set catalog.folder_labels to path to keep them apart",
        )
