"""The rows of a run: labelled, by split, with a digest that tells whether they changed."""

import hashlib

import numpy as np

from retailray import events
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog
from retailray.data.labels import labels_in_several_spellings
from retailray.data.numeric_labels import EXAMPLES, VALUE, with_values
from retailray.data.splits import hash_unit, read_splits
from retailray.errors import CatalogError
from retailray.models.meta import EPOCH, ROLES, TEMPERATURE, THRESHOLDS

TEMPERATURE_SHARE, THRESHOLDS_SHARE = 0.2, 0.3  # of the validation products; the others choose the best epoch
MAX_TEMPERATURE_PRODUCTS, MAX_EPOCH_PRODUCTS = 1_000, 10_000  # enough for these; the rest is for thresholds
SPLIT_OF_ROLE = {EPOCH: "validation", TEMPERATURE: "temperature", THRESHOLDS: "thresholds"}


def labelled_splits(config: TrainConfig) -> dict[str, Catalog]:
    """Rows with a label, by split; where labels are numbers, with their values (:mod:`retailray.training.numbers`).

    Raises:
        CatalogError: there is nothing to train or choose on.
    """
    splits = read_splits(config.catalog, config.split)
    regression = config.model.task == "regression"
    given: dict[str, list[str]] = {}  # some labels, where numbers are asked for
    for name, part in splits.items():
        labelled = part.column("label") != ""
        if not labelled.all():
            events.emit("warning", split=name, unlabelled_rows_left_out=int((~labelled).sum()))
        splits[name] = part.select(labelled)
        if regression:
            given[name] = sorted(set(splits[name].column("label")))[:EXAMPLES]
            splits[name] = with_values(splits[name], split=name)
    for name, advice in (
        ("train", "catalog.label names the column"),
        ("validation", "raise split.validation, or give catalog.validation_uri or catalog.split"),
    ):
        if name not in splits or not len(splits[name]):
            if regression and name in given and given[name]:
                raise CatalogError(
                    f"{config.catalog.uri}: catalog.label names no number in any of the {name} rows, but "
                    f"{', '.join(map(repr, given[name]))}: model.task regression learns numbers, written as 12.5 or 1e3"
                )
            what = f"{name} rows with a number as label" if regression else f"labelled {name} rows"
            raise CatalogError(f"{config.catalog.uri}: no {what}; {advice}")
    splits = {name: splits[name] for name in ("train", "validation")}
    if not regression:
        _look_at_labels(config, splits)
    return splits


def _look_at_labels(config: TrainConfig, splits: dict[str, Catalog]) -> None:
    """Warn of labels that are doubtful. Raises CatalogError where they cannot be learned."""
    known = set(splits["train"].column("label"))
    for group in labels_in_several_spellings(known):
        events.emit(
            "warning",
            similar_labels=group,
            note="trained as different labels; they differ only in case, blanks or Unicode form: set "
            "catalog.normalize_labels to merge them",
        )
    if len(known) < 2:
        raise CatalogError(f"{config.catalog.uri}: the training rows have one label only ({known}); two are needed")
    strange = sorted(set(splits["validation"].column("label")) - known)
    if not known & set(splits["validation"].column("label")):
        raise CatalogError(f"{config.catalog.uri}: no label of the validation rows occurs in training: {strange[:5]}")
    if strange:
        events.emit(
            "warning", labels_only_in_validation=strange[:10], note="their rows are excluded from validation metrics"
        )


def rows_digest(splits: dict[str, Catalog]) -> str:
    """Return the SHA-256 over ids, addresses, labels and products of all rows, in order."""
    digest = hashlib.sha256()
    for part in splits.values():
        for name in ("id", "uri", "label", "group"):
            digest.update("\0".join(part.rows.column(name).to_pylist()).encode())
        if VALUE in part.rows.column_names:
            digest.update(part.column(VALUE).tobytes())
    return digest.hexdigest()


def validation_roles(groups: np.ndarray, *, seed: int, chooses_epoch: bool = True) -> np.ndarray:
    """Say for every validation row what it is used for: choosing the best epoch, the temperature, or thresholds.

    ``chooses_epoch``: whether rows do that; where the model was trained elsewhere, those are for thresholds too.

    Rows of one product have one role. A row that chose the epoch or the temperature would make a promise of precision
    look better than it is.

    Args:
        groups: product names ``(N,)``.

    Returns:
        :data:`retailray.models.meta.ROLES`, object ``(N,)``; with too few products every row gets the role epoch (or
        thresholds, where none chooses the epoch).
    """
    products = sorted(set(groups), key=lambda product: hash_unit(seed, f"role\0{product}"))
    num_temperature = min(int(TEMPERATURE_SHARE * len(products)), MAX_TEMPERATURE_PRODUCTS)
    num_thresholds = max(int(THRESHOLDS_SHARE * len(products)), len(products) - num_temperature - MAX_EPOCH_PRODUCTS)
    roles = dict.fromkeys(products, EPOCH if chooses_epoch else THRESHOLDS)
    roles |= dict.fromkeys(products[:num_thresholds], THRESHOLDS)
    roles |= dict.fromkeys(products[num_thresholds : num_thresholds + num_temperature], TEMPERATURE)
    return np.array([roles[group] for group in groups], dtype=object)


def with_roles(rows: dict[str, np.ndarray], catalog: Catalog, labels: list[str], *, seed: int) -> dict[str, np.ndarray]:
    """Divide the validation rows of a fit by :func:`validation_roles`.

    Args:
        rows: row numbers of ``catalog`` by split.

    Returns:
        The same with ``validation`` (which choose the epoch), ``temperature`` and ``thresholds``, where there are any.
        Rows whose label training does not know choose nothing.
    """
    chosen = rows["validation"]
    known = targets_of(catalog.column("label")[chosen], labels) >= 0
    roles = validation_roles(catalog.column("group")[chosen][known], seed=seed)
    parts = {SPLIT_OF_ROLE[role]: chosen[known][roles == role] for role in ROLES}
    parts["validation"] = np.sort(np.concatenate([parts["validation"], chosen[~known]]))
    return rows | {name: part for name, part in parts.items() if len(part)}


def targets_of(names: np.ndarray, labels: list[str]) -> np.ndarray:
    """Label names ``(N,)`` as numbers, int64 ``(N,)``; -1 where training does not know the label."""
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64)


def class_weights(names: np.ndarray, labels: list[str]) -> list[float]:
    """Every class weighs the same in all: rows / (classes * rows of the class)."""
    found = dict(zip(*np.unique(names.astype(object), return_counts=True), strict=True))
    counts = np.array([max(1, found.get(label, 0)) for label in labels])
    return (counts.sum() / (len(labels) * counts)).tolist()
