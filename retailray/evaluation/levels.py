"""How good predictions are at every level of a taxonomy."""

import numpy as np

from retailray.data.taxonomy import Path, Taxonomy


def level_metrics(truth: np.ndarray, predicted: np.ndarray, taxonomy: Taxonomy) -> dict[str, object]:
    """Measures of N predictions.

    Args:
        truth, predicted: labels, object ``(N,)``.

    Returns:
        ``levels``: of each depth from the root (1) on, the share of rows whose ancestor there is right (``top1``; a
        label that lies higher stands for itself) and the ``nodes`` that occur; hierarchical ``precision``, ``recall``
        and ``f1``: of all ancestors of predicted labels, themselves included, the share that are ancestors of the true
        ones, and the other way round (Kiritchenko et al. 2006).
    """
    paths = [taxonomy.paths.get(label, (label,)) for label in truth.tolist()]
    guesses = [taxonomy.paths.get(label, (label,)) for label in predicted.tolist()]
    levels = []
    for depth in range(1, max(map(len, (*paths, *guesses)), default=0) + 1):
        right = [path[:depth] == guess[:depth] for path, guess in zip(paths, guesses, strict=True)]
        nodes = len({path[:depth] for path in paths})
        levels.append({"depth": depth, "top1": float(np.mean(right)), "nodes": nodes})
    common = sum(map(_common, paths, guesses))
    precision, recall = common / sum(map(len, guesses)), common / sum(map(len, paths))
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return {"levels": levels, "precision": precision, "recall": recall, "f1": f1}


def _common(one: Path, other: Path) -> int:
    """How many levels two paths share from the root on."""
    shared = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared += 1
    return shared
