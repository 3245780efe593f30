"""An answer at the level that is sure: the class, else the deepest ancestor in the taxonomy that is probable enough.

The probability of an ancestor is the sum of those of the classes below it. With a target precision every ancestor has a
threshold of its own, a promise as that of a class (:mod:`retailray.models.thresholds`): level by level from the classes
upwards, on the validation rows that nothing deeper accepts, since those are the rows that it decides on.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from retailray.data.taxonomy import BETWEEN, Taxonomy, taxonomy_of
from retailray.models.meta import THRESHOLDS, BundleMeta, Thresholds
from retailray.models.thresholds import NEVER, Promise, Validation, fit_promise


def taxonomy_of_model(uri: str | None, meta: BundleMeta) -> Taxonomy | None:
    """``taxonomy.uri``, else that of the bundle; None where there is none. Raises CatalogError."""
    if uri:
        return taxonomy_of(uri, (), meta.labels)
    if not meta.taxonomy:
        return None
    return Taxonomy({label: tuple(path) for label, path in meta.taxonomy.items()}, meta.data.get("taxonomy_from", ""))


@dataclasses.dataclass(frozen=True)
class Level:
    """What stands at one depth. Of each class, int64 ``(C,)``: ``above``: the number of the node there that it lies
    below, ``within``: the same, or of the node that it is; -1: none. ``names``: of the nodes, as
    paths; ``labels``: their own names, or paths where these are names of classes elsewhere, or where classes are paths.
    """

    depth: int
    above: np.ndarray
    within: np.ndarray
    names: Sequence[str]
    labels: Sequence[str]

    def probabilities(self, predicted: np.ndarray, classes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Of the nodes above the predicted classes ``(N,)``: the sum of what lies below them, float64 ``(N,)``; NaN:
        there is none. Other args: the most probable classes and their probabilities, ``(N, K)``."""
        nodes = self.above[predicted]
        below = self.within[classes] == nodes[:, None]
        return np.where(nodes >= 0, (probabilities.astype(np.float64) * below).sum(1), np.nan)


def levels_of(taxonomy: Taxonomy, labels: Sequence[str]) -> list[Level]:
    """The depths at which classes have ancestors, the deepest first. A node that has all classes below it says nothing,
    and is left out."""
    paths = [taxonomy.paths.get(label, (label,)) for label in labels]
    known = dict(zip(labels, paths, strict=True))
    as_paths = any(len(path) > 1 and label == BETWEEN.join(path) for label, path in known.items())
    found = []
    for depth in range(taxonomy.depth - 1, 0, -1):
        nodes = sorted({path[:depth] for path in paths if len(path) > depth})
        number = {node: at for at, node in enumerate(nodes)}
        within = np.array([number.get(path[:depth], -1) if len(path) >= depth else -1 for path in paths])
        above = np.array([number[path[:depth]] if len(path) > depth else -1 for path in paths])
        if (within == within[0]).all():
            continue
        names = [BETWEEN.join(node) for node in nodes]
        own = [
            name if as_paths or known.get(node[-1], node) != node else node[-1]
            for name, node in zip(names, nodes, strict=True)
        ]
        found.append(Level(depth, above, within, names, own))
    return found


@dataclasses.dataclass(frozen=True)
class Backing:
    """``levels``, the deepest first, each with the thresholds of its nodes, float64 ``(nodes,)``; ``promises``: of
    each, where thresholds keep a target."""

    levels: Sequence[tuple[Level, np.ndarray]]
    promises: Sequence[Promise]

    def accepted(
        self, predicted: np.ndarray, classes: np.ndarray, probabilities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of rows that were not accepted as a class: the position in ``levels`` of the deepest ancestor that is
        probable enough, int64 ``(N,)`` (-1: none), its node, and its probability."""
        at, node = np.full(len(predicted), -1), np.full(len(predicted), -1)
        score = np.full(len(predicted), np.nan)
        for position, (level, thresholds) in enumerate(self.levels):
            found = level.probabilities(predicted, classes, probabilities)
            nodes = level.above[predicted]
            good = (at < 0) & (nodes >= 0) & (found >= thresholds[nodes])
            at[good], node[good], score[good] = position, nodes[good], found[good]
        return at, node, score


def back_off(
    taxonomy: Taxonomy,
    labels: Sequence[str],
    thresholds: Thresholds,
    validation: Validation | None,
    target: float | None,
) -> Backing:
    """Fit the thresholds of ancestors for a target precision; without one they are that of classes, ``accept``.

    Args:
        labels: the model's. thresholds: of classes, as they are used. validation: rows of the bundle.
    """
    levels = levels_of(taxonomy, labels)
    if not target:
        return Backing([(level, np.full(len(level.names), thresholds.accept)) for level in levels], ())
    never = [(level, np.full(len(level.names), NEVER)) for level in levels]
    if validation is None or validation.probabilities is None or validation.classes is None:
        return Backing(never, ())
    rows = validation.of_role(THRESHOLDS)
    number = {label: at for at, label in enumerate(labels)}
    predicted, truth = (np.array([number[name] for name in names], np.int64) for names in (rows.predicted, rows.labels))
    accept = np.array([thresholds.per_class.get(label, thresholds.accept) for label in labels])
    left = rows.scores < np.maximum(accept, thresholds.abstain)[predicted]
    assert rows.classes is not None
    assert rows.probabilities is not None
    found, promises = [], []
    for level in levels:
        scores = level.probabilities(predicted, rows.classes, rows.probabilities)
        mine = left & (level.above[predicted] >= 0)
        names = np.array(level.names, object)
        told = np.where(level.within[truth] >= 0, names[level.within[truth]], "")
        part = Validation(
            told[mine], names[level.above[predicted]][mine], scores[mine], rows.groups[mine], rows.roles[mine]
        )
        promise = fit_promise(part, target_precision=target)
        limits = np.array([_threshold(promise.classes, name) for name in level.names])
        left &= ~(mine & (scores >= limits[level.above[predicted]]))
        found.append((level, limits))
        promises.append(promise)
    return Backing(found, promises)


def _threshold(classes: Mapping[str, object], name: str) -> float:
    return getattr(classes.get(name), "threshold", NEVER)
