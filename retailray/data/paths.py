"""Columns by name, also of what lies within nested values (``product_type.0.value``) and of several (``Image *``)."""

import fnmatch
from collections.abc import Sequence


def column_of(name: str, columns: Sequence[str]) -> tuple[str, list[str]] | None:
    """The column that a name means, and the path within its values; None if there is none.

    A column of this very name comes first, then the longest one that the name begins with before a dot. ``*`` stands
    for any characters, of the first column that fits.
    """
    if name in columns:
        return name, []
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        stem = ".".join(parts[:length])
        if stem in columns:
            return stem, parts[length:]
        if "*" in stem and (found := fnmatch.filter(columns, stem)):
            return found[0], parts[length:]
    return None


def columns_of(names: Sequence[str], columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The columns that several names mean, in their order; a name with commas, that is no column's, names several."""
    found: list[tuple[str, list[str]]] = []
    for name in names:
        if one := column_of(name, columns):
            found.append(one)
        elif "*" in name:
            found += [(column, []) for column in fnmatch.filter(columns, name)]
        elif "," in name:
            found += columns_of([part.strip() for part in name.split(",") if part.strip()], columns)
    return list({(column, tuple(path)): (column, path) for column, path in found}.values())
