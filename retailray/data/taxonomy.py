"""A tree of labels: every label with its path, from the root down to itself."""

import csv
import dataclasses
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from retailray import events, storage
from retailray.data.catalog import Catalog
from retailray.errors import CatalogError

SOURCES = FILE, PARENTS, LABEL_PATHS = ("taxonomy.uri", "catalog.parent", "catalog.label_separator")
BETWEEN = " > "  # levels of a path, as it is published
MAX_BYTES = 64_000_000
# `3237 - A > B` (Google), `gid://shopify/... : A > B` (Shopify)
_NUMBERED = re.compile(r"^(?:\d+|gid://\S+)\s+[-:]\s+")
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """``paths``: of each label, its place in the tree: its ancestors from the root on and itself. ``source``: where
    that comes from, one of :data:`SOURCES`."""

    paths: Mapping[str, Path]
    source: str = ""

    def kept(self) -> dict[str, list[str]]:
        """As bundles keep it."""
        return {label: list(path) for label, path in self.paths.items()}

    @property
    def depth(self) -> int:
        return max(map(len, self.paths.values()), default=0)


def taxonomy_of(uri: str | None, catalogs: Iterable[Catalog], labels: Sequence[str]) -> Taxonomy | None:
    """The paths of labels: by a file, else by what the catalogs say (``catalog.parent``, ``catalog.label_separator``);
    None where neither says anything.

    Raises:
        CatalogError: the file is no taxonomy, or lacks a label; a label has two parents. StorageError.
    """
    if uri:
        return _of_labels(uri, read_taxonomy(uri), labels)
    told: dict[str, set[Path]] = {}
    by_parent = ""
    for catalog in catalogs:
        if catalog.source is not None:
            by_parent = catalog.source.section.parent or by_parent
            for label, paths in catalog.source.label_paths.items():
                told.setdefault(label, set()).update(paths)
    if by_parent:
        return _of_parents(by_parent, told, labels)
    # a bare mention says nothing beside a path
    found = {label: {path for path in paths if len(path) > 1} for label, paths in told.items()}
    several = sorted(label for label in labels if len(found.get(label, ())) > 1)
    if several:
        note = "these labels stand in several branches of catalog.label_separator's paths: each is a tree of its own"
        events.emit("warning", labels=several[:10], count=len(several), note=note)
    chosen = {label: next(iter(found[label])) if len(found.get(label, ())) == 1 else (label,) for label in labels}
    return Taxonomy(chosen, LABEL_PATHS) if any(len(path) > 1 for path in chosen.values()) else None


def _of_parents(column: str, told: Mapping[str, set[Path]], labels: Sequence[str]) -> Taxonomy:
    """By ``catalog.parent``: a parent that is a label itself has its own parent."""
    if not told:
        raise CatalogError(f"catalog.parent = {column}: no labelled row has a value there, or there is no such column")
    parents: dict[str, Path] = {}
    for label, paths in sorted(told.items()):
        if len(paths) > 1:
            names = " and ".join(sorted(BETWEEN.join(path[:-1]) for path in paths))
            raise CatalogError(
                f"catalog.parent = {column}: the label {label!r} has several parents: {names}; correct the rows, or "
                "rename labels with catalog.label_map"
            )
        parents[label] = next(iter(paths))[:-1]

    def climbed(label: str, below: Path) -> Path:
        if label in below:
            raise CatalogError(f"catalog.parent = {column}: it has a cycle: {BETWEEN.join((label, *below))}")
        above = parents.get(label, ())
        if len(above) == 1:  # a name, which may have a parent of its own
            return (*climbed(above[0], (label, *below)), label)
        return (*above, label)

    return Taxonomy({label: climbed(label, ()) for label in labels}, PARENTS)


def _of_labels(uri: str, nodes: Sequence[Path], labels: Sequence[str]) -> Taxonomy:
    by_path = {BETWEEN.join(path): path for path in nodes}
    by_name: dict[str, set[Path]] = {}
    for path in nodes:
        by_name.setdefault(path[-1], set()).add(path)
    paths, missing = {}, []
    for label in labels:
        plain = unicodedata.normalize("NFC", label)
        found = by_path.get(BETWEEN.join(part.strip() for part in plain.split(">")))
        named = by_name.get(plain, set())
        if len(named) > 1 and (found is None or ">" not in plain):
            told = " and ".join(sorted(map(BETWEEN.join, named)))
            raise CatalogError(
                f"taxonomy.uri = {uri}: the label {label!r} stands in several branches ({told}); name it by its path, "
                "with catalog.label_map"
            )
        if found is None and not named:
            missing.append(label)
            continue
        paths[label] = found or next(iter(named))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CatalogError(
            f"taxonomy.uri = {uri}: it does not have the labels {', '.join(map(repr, missing[:5]))}{more}; rename "
            "them with catalog.label_map, or add them"
        )
    return Taxonomy(paths, FILE)


def read_taxonomy(uri: str) -> list[Path]:
    """Every node's path: of lines of paths (``A > B``, as Google and Shopify publish theirs), or CSV with child and
    parent.

    Raises:
        CatalogError: it is neither, or has a cycle. StorageError: it cannot be read.
    """
    storage.check_readable(uri)
    try:
        text = _bounded(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"taxonomy.uri = {uri}: it is no text in UTF-8 ({error})") from error
    lines = [line.strip() for line in unicodedata.normalize("NFC", text).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise CatalogError(f"taxonomy.uri = {uri}: it is empty")
    head = [cell.strip().lower() for cell in next(csv.reader([lines[0]]))]
    if {"child", "parent"} <= set(head):
        return _of_pairs(uri, lines)
    lines = [line for line in lines if not line.startswith("#")]  # what the publisher says of the file
    if not any(">" in line for line in lines):
        raise CatalogError(
            f"taxonomy.uri = {uri}: neither lines of paths (3237 - A > B) nor CSV with the columns child and parent"
        )
    paths = [tuple(part.strip() for part in _NUMBERED.sub("", line).split(">")) for line in lines]
    if bad := [line for line, path in zip(lines, paths, strict=True) if not all(path)]:
        raise CatalogError(f"taxonomy.uri = {uri}: a level without a name: {bad[0]!r}")
    return sorted({path[:depth] for path in paths for depth in range(1, len(path) + 1)})


def _bounded(uri: str) -> bytes:
    with storage.open_binary(uri) as file:
        data = file.read(MAX_BYTES + 1)  # type: ignore[attr-defined]
    if len(data) > MAX_BYTES:
        raise CatalogError(f"taxonomy.uri = {uri}: more than {MAX_BYTES // 1_000_000} MB is no taxonomy")
    return data


def _of_pairs(uri: str, lines: Sequence[str]) -> list[Path]:
    parents: dict[str, str] = {}
    rows = csv.DictReader(io.StringIO("\n".join(lines)))
    for row in rows:
        named = ((name, cell) for name, cell in row.items() if name and isinstance(cell, str))
        cells = {name.strip().lower(): cell.strip() for name, cell in named}
        child, parent = cells.get("child", ""), cells.get("parent", "")
        if not child:
            raise CatalogError(f"taxonomy.uri = {uri}, line {rows.line_num}: no child")
        if parents.setdefault(child, parent) != parent:
            raise CatalogError(
                f"taxonomy.uri = {uri}: {child!r} has two parents, {parents[child]!r} and {parent!r}; a taxonomy "
                "is a tree"
            )
    return [_climbed(uri, name, parents) for name in {*parents, *filter(None, parents.values())}]


def _climbed(uri: str, name: str, parents: Mapping[str, str]) -> Path:
    path = [name]
    while parent := parents.get(path[-1], ""):
        if parent in path:
            told = BETWEEN.join([*path[path.index(parent) :][::-1], parent] if parent != path[-1] else [parent, parent])
            raise CatalogError(f"taxonomy.uri = {uri}: it has a cycle: {told}")
        path.append(parent)
    return tuple(reversed(path))
