"""Which known layout a catalog has, and which settings follow from it."""

import contextlib
import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from retailray import storage
from retailray.config import CatalogSection
from retailray.config.yaml_files import load_yaml
from retailray.data.image_files import SUFFIXES as IMAGE_SUFFIXES
from retailray.data.paths import column_of
from retailray.data.tables import head_of, is_archive, table_files, visible_files
from retailray.errors import CatalogError, ConfigError, StorageError

COLUMN_SETTINGS = ("id", "group", "label", "split")  # a list of columns: the first that is there


class Layout(NamedTuple):
    """A layout of catalogs: what tells it, and what it sets.

    ``columns``: all of them are there. ``kinds``: of sources that may have it (csv, tsv, json, xml, parquet, shard);
    none: any. ``csv``, ``tsv``: settings of delimited text besides. ``needs``: settings that nobody but the user knows.
    """

    name: str
    title: str
    columns: list[str]
    settings: dict[str, Any]
    kinds: list[str] = []  # noqa: RUF012 (a NamedTuple's, and nobody writes into it)
    csv: dict[str, Any] = {}  # noqa: RUF012
    tsv: dict[str, Any] = {}  # noqa: RUF012
    needs: list[str] = []  # noqa: RUF012


class Recognised(NamedTuple):
    """The layout that a catalog has, and the settings that follow from it; ``section`` has them."""

    section: CatalogSection
    name: str | None
    title: str
    settings: dict[str, Any]


@functools.cache
def known_layouts() -> dict[str, Layout]:
    """The layouts that come with the package, by name."""
    folder = resources.files("retailray.data") / "formats"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {name: _layout(name, file.read_bytes()) for file in files if (name := file.name.removesuffix(".yaml"))}


def _layout(name: str, data: bytes) -> Layout:
    try:
        found = load_yaml(data)
        layout = Layout(name, **found) if isinstance(found, dict) else None
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError([f"catalog.format = {name}: {error}"]) from error
    if layout is None or not isinstance(layout.columns, list) or not isinstance(layout.settings, dict):
        raise ConfigError([f"catalog.format = {name}: title, columns (a list) and settings (catalog.*) are needed"])
    return layout


def named_layout(name: str) -> Layout | None:
    """The layout that ``catalog.format`` names; None for auto and none. Raises ConfigError."""
    if name in ("auto", "none"):
        return None
    if name in known_layouts():
        return known_layouts()[name]
    if not name.lower().endswith((".yaml", ".yml")):
        known = ", ".join(known_layouts())
        raise ConfigError([f"catalog.format = {name!r} is none of auto, none, {known}; nor a YAML file"])
    try:
        return _layout(name, storage.read_bytes(name))
    except StorageError as error:
        raise ConfigError([f"catalog.format = {name}: {error}"]) from error


def recognise(section: CatalogSection, columns: Sequence[str], kind: str) -> Recognised:
    """The section with what its layout sets; what is given by hand wins.

    A catalog whose images are named by hand (``catalog.image``) has no layout but one that ``catalog.format`` names.

    Args:
        columns: of its first table, or the keys of its records. kind: csv, tsv, json, xml, parquet or shard.

    Raises:
        CatalogError: a layout that is named is not this one's, or needs a setting.
    """
    # a whole config, as runs write it, sets every field; what differs from its default is what somebody gave
    whole = section.model_fields_set >= set(CatalogSection.model_fields)
    given = section.non_default_fields() if whole else set(section.model_fields_set)
    layout = named_layout(section.format)
    if layout and (missing := [name for name in layout.columns if name not in columns]):
        raise CatalogError(
            f"{section.uri}: catalog.format = {section.format}: columns {', '.join(missing)} are missing; there are "
            f"{', '.join(columns)}"
        )
    if layout is None and section.format == "auto" and "image" not in given:
        fitting = [one for one in known_layouts().values() if _fits(one, columns, kind)]
        layout = max(fitting, key=lambda one: len(one.columns), default=None)
    if layout is None:
        return Recognised(section, None, "", {})
    lacking = [name for name in layout.needs if name not in given]
    if lacking and section.format != "auto":
        keys = ", ".join(f"catalog.{name}" for name in lacking)
        raise CatalogError(f"{section.uri}: this is {layout.title}; {keys} must be given")
    values = layout.settings | {"csv": layout.csv, "tsv": layout.tsv}.get(kind, {})
    settings = {name: value for name, value in values.items() if name not in given}
    for name in COLUMN_SETTINGS:
        if name in settings:
            wanted = settings[name] if isinstance(settings[name], list) else [settings[name]]
            there = [one for one in wanted if column_of(one, columns)]
            settings = {key: value for key, value in settings.items() if key != name} | (
                {name: there[0]} if there else {}
            )
    explicit = {name: getattr(section, name) for name in given | {"uri", "format"}}
    try:
        merged = CatalogSection(**{**settings, **explicit})
    except ValidationError as error:
        said = "; ".join(detail["msg"] for detail in error.errors())
        raise ConfigError([f"catalog.format = {layout.name}: {said}"]) from error
    return Recognised(merged, layout.name, layout.title, settings)


def _fits(layout: Layout, columns: Sequence[str], kind: str) -> bool:
    return set(layout.columns) <= set(columns) and (not layout.kinds or kind in layout.kinds)


def catalog_files(uri: str, *, encoding: str) -> list[str]:
    """:func:`retailray.data.tables.table_files`, and of a folder without tables the JSON documents, feeds and archives
    in it (not below it) that have a known layout or hold tables."""
    files = table_files(uri)
    if files or is_archive(uri):
        return files
    found: list[str] = []
    loose = visible_files(uri)
    for name in [name for name in loose if "/" not in name[len(uri) :].strip("/")]:
        with contextlib.suppress(CatalogError):  # then it is no catalog
            if is_archive(name) and not any(one.lower().endswith(IMAGE_SUFFIXES) for one in loose):
                found += table_files(name)
            elif name.lower().removesuffix(".gz").endswith((".json", ".xml")):
                head = head_of(name, encoding=encoding)
                if any(_fits(layout, head.columns, head.kind) for layout in known_layouts().values()):
                    found.append(name)
    return sorted(found)
