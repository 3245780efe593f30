"""Folders as labels: which files lie in them, and which folders share a name."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence

from retailray import progress, storage
from retailray.config import CatalogSection
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.tables import table_files, visible_files


def class_folder_files(uri: str) -> list[str]:
    """Files below a folder of class folders, sorted; links to folders on this machine are followed, each once."""
    if not storage.is_local(uri):
        return sorted(visible_files(uri))
    found, seen = [], set()
    for folder, subfolders, names in os.walk(uri, followlinks=True):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(("_", ".", "run_id="))]
        found += [os.path.join(folder, name) for name in names if not name.startswith(("_", "."))]
    return sorted(found)


def unread_suffixes(section: CatalogSection) -> dict[str, int]:
    """Files by suffix that lie in class folders and are not read, since their names are of no image format."""
    if table_files(section.uri):
        return {}
    names = [name for name in class_folder_files(section.uri) if not name.lower().endswith(IMAGE_SUFFIXES)]
    return dict(sorted(Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in names).items()))


def equal_leaves(folders: Sequence[str]) -> dict[str, list[str]]:
    """Folders of different parents that have one name, by that name: as labels they are one."""
    parents: dict[str, set[str]] = defaultdict(set)
    for folder in set(folders):
        parents[os.path.basename(folder)].add(folder)
    return {name: sorted(members) for name, members in sorted(parents.items()) if len(members) > 1}


def warn_of_equal_leaves(folders: Sequence[str]) -> None:
    """Emit a warning for each name of :func:`equal_leaves`, ten at most."""
    for name, members in list(equal_leaves(folders).items())[:10]:
        progress.emit(
            "warning",
            label=name,
            folders=members[:10],
            note="these folders are one label; set catalog.folder_labels to path to keep them apart",
        )
