"""Assign rows to the train, validation and test splits."""

import hashlib

import numpy as np

from retailray.config import CatalogSection, SplitSection
from retailray.data.catalog import Catalog, read_catalog
from retailray.data.columns import UNASSIGNED
from retailray.errors import CatalogError


def hash_unit(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign_splits(groups: np.ndarray, *, validation: float, test: float, seed: int) -> np.ndarray:
    """Split names (N,) by a hash of each row's group: products stay together, and added rows move nobody.

    The hash knows nothing of the others, so every class is divided in the same proportion only on average: the price
    of a split that never moves a row from training to test when the catalog grows.
    """
    units = {group: hash_unit(seed, group) for group in set(groups)}

    def name(group: str) -> str:
        unit = units[group]
        return "test" if unit < test else "validation" if unit < test + validation else "train"

    return np.array([name(group) for group in groups], dtype=object)


def rows_of_split(
    catalog: CatalogSection, split: SplitSection, wanted: str, *, key: str, needs_label: bool = True
) -> Catalog:
    """Return the rows of one split, or of all (``wanted``): what ``evaluate``, ``compare`` and ``promote`` measure on.

    Args:
        key: the setting that names the split, for errors. needs_label: a catalog without the label column is refused.

    Raises:
        CatalogError: the split has no rows; which there are, and what to set.
    """
    if wanted == "all":
        return read_catalog(catalog, needs_label=needs_label or "label" in catalog.non_default_fields())
    splits = read_splits(catalog, split)
    if wanted not in splits:
        there = ", ".join(f"{name} ({len(part)})" for name, part in splits.items())
        raise CatalogError(
            f"{catalog.uri}: {key} = {wanted}: it has no rows; there are {there}. Hold rows back with split.{wanted} "
            f"as in training, name their table with catalog.{wanted}_uri, or set {key} to all for a catalog that was "
            "never trained on"
        )
    return splits[wanted]


def read_splits(catalog: CatalogSection, split: SplitSection, *, needs_label: bool = True) -> dict[str, Catalog]:
    """All rows as train, validation and test catalogs; a split without rows is left out.

    Separate catalogs (``catalog.validation_uri``, ``catalog.test_uri``), a split column, and folders named like splits
    win over hashing.

    Raises:
        CatalogError, StorageError: see :func:`retailray.data.catalog.read_catalog`.
    """
    main = read_catalog(catalog, needs_label=needs_label)
    if (main.column("split") != "").any():
        names = main.column("split")
        free = names == UNASSIGNED
        if free.any():  # as a catalog without splits is divided
            by_hash = assign_splits(main.column("group"), validation=split.validation, test=split.test, seed=split.seed)
            names = np.where(free, by_hash, names)
        elif split.non_default_fields() - {"folds"}:
            raise CatalogError(f"{catalog.uri}: split.* would be ignored: its folders are named like splits")
    else:
        validation = 0.0 if catalog.validation_uri else split.validation
        test = 0.0 if catalog.test_uri else split.test
        if validation + test >= 1:
            raise CatalogError(f"split.validation + split.test = {validation + test:g}: nothing is left to train on")
        names = assign_splits(main.column("group"), validation=validation, test=test, seed=split.seed)
    parts = {name: main.select(names == name) for name in ("train", "validation", "test")}
    num_rows = len(main)
    for name, uri in (("validation", catalog.validation_uri), ("test", catalog.test_uri)):
        if uri:
            parts[name] = read_catalog(catalog, uri=uri, needs_label=needs_label, first_row_id=num_rows)
            num_rows += len(parts[name])
    return {name: part for name, part in parts.items() if len(part)}
