"""The rows of a run: labelled, by split, with a digest that tells whether they changed."""

import hashlib

import numpy as np

from retailray import progress
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog
from retailray.data.splits import read_splits
from retailray.errors import CatalogError


def labelled_splits(config: TrainConfig) -> dict[str, Catalog]:
    """Rows with a label, by split. Raises CatalogError where there is nothing to train or choose on."""
    splits = read_splits(config.catalog, config.split)
    for name, part in splits.items():
        labelled = part.column("label") != ""
        if not labelled.all():
            progress.emit("warning", split=name, unlabelled_rows_left_out=int((~labelled).sum()))
        splits[name] = part.select(labelled)
    for name, advice in (
        ("train", "catalog.label names the column"),
        ("validation", "raise split.validation, or give catalog.validation_uri or catalog.split"),
    ):
        if name not in splits or not len(splits[name]):
            raise CatalogError(f"{config.catalog.uri}: no labelled {name} rows; {advice}")
    known = set(splits["train"].column("label"))
    if len(known) < 2:
        raise CatalogError(f"{config.catalog.uri}: the training rows have one label only ({known}); two are needed")
    strange = sorted(set(splits["validation"].column("label")) - known)
    if not known & set(splits["validation"].column("label")):
        raise CatalogError(f"{config.catalog.uri}: no label of the validation rows occurs in training: {strange[:5]}")
    if strange:
        progress.emit("warning", labels_only_in_validation=strange[:10], note="their rows are left out of its metrics")
    return {name: splits[name] for name in ("train", "validation")}


def rows_digest(splits: dict[str, Catalog]) -> str:
    """Of ids, addresses, labels and products, in order."""
    digest = hashlib.sha256()
    for part in splits.values():
        for name in ("id", "uri", "label", "group"):
            digest.update("\0".join(part.rows.column(name).to_pylist()).encode())
    return digest.hexdigest()


def targets_of(names: np.ndarray, labels: list[str]) -> np.ndarray:
    """Label names ``(N,)`` as numbers, int64 ``(N,)``; -1 where training does not know the label."""
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64)


def class_weights(names: np.ndarray, labels: list[str]) -> list[float]:
    """Every class weighs the same in all: rows / (classes * rows of the class)."""
    counts = np.array([max(1, int((names == label).sum())) for label in labels])
    return (counts.sum() / (len(labels) * counts)).tolist()
