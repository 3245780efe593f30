"""How suspicious each label is: heads that never saw a row say how probable its label is (confident learning).

Rows that confident learning (Northcutt et al. 2021, arXiv 1911.00068; cleanlab) takes for wrong are left out, and the
heads are fitted once more: wrong labels teach them to expect themselves.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

FOLDS = 10
ROUNDS = 2  # divisions into folds whose probabilities are averaged
MOST_LEFT_OUT = 0.2  # of the rows, from the second fit
Divisions = Sequence[list[np.ndarray]]  # of each, the rows of every fold


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """Of N labels: ``score``: probability of the given label, float ``(N,)``, NaN where nothing can be said since no
    other product has it; ``suggested``: int64 ``(N,)``, the most probable other label where the given one is
    suspicious or less probable, else the given one; ``suggested_score``: its probability; ``suspicious``: bool, whether
    confident learning takes the label for wrong."""

    score: np.ndarray
    suggested: np.ndarray
    suggested_score: np.ndarray
    suspicious: np.ndarray


def suspicion(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, num_classes: int) -> Suspicion:
    """Look at every label.

    Args:
        features: float ``(N, D)``. labels: int64 ``(N,)``, each class occurs. groups: int64 ``(N,)``, of rows that are
            in one fold together: of a product, or nearly the same picture.
    """
    divisions = [_folds(labels, groups, seed) for seed in range(ROUNDS)]
    everything = np.ones(len(labels), bool)
    found = _out_of_fold(features, labels, divisions, everything, num_classes=num_classes)
    judged = _judged(labels, groups)
    wrong = _wrong(labels, found, judged)
    limit = int(MOST_LEFT_OUT * len(labels))
    if wrong.sum() > limit:
        kept = np.argsort(np.where(wrong, _own(found, labels), np.inf), kind="stable")[:limit]
        wrong = np.isin(np.arange(len(labels)), kept)
    left = _enough(labels, groups, ~wrong)
    found = _out_of_fold(features, labels, divisions, left, num_classes=num_classes)
    wrong = _wrong(labels, found, judged)
    own = _own(found, labels)
    others = found.copy()
    others[np.arange(len(labels)), labels] = -1
    suggested = np.where(wrong | (others.max(1) > own), others.argmax(1), labels)
    suggested = np.where(judged, suggested, labels)
    score = np.where(judged, own, np.nan)
    return Suspicion(score, suggested, np.where(judged, _own(found, suggested), np.nan), wrong)


def _own(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows of each fold: classes in equal shares, groups in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold  # a second, and a check of images alone does not want it

    # none can be in more folds than it has rows
    num = max(2, min(FOLDS, len(np.unique(groups)), int(np.bincount(labels).max())))
    divider = StratifiedGroupKFold(num, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes smaller than the number of folds are in some of them only
        return [test for _, test in divider.split(labels, labels, groups)]


def _out_of_fold(
    features: np.ndarray, labels: np.ndarray, divisions: Divisions, used: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """Probabilities ``(N, C)`` of every row by heads that were fitted on other folds; of rows that are ``used``."""
    from retailray.models.linear_heads import fit_and_predict

    logits = np.zeros((len(labels), num_classes), np.float32)
    for folds in divisions:
        for test in folds:
            train = np.flatnonzero(used & ~np.isin(np.arange(len(labels)), test))
            logits[test] += fit_and_predict(features, labels, train, test, num_classes=num_classes) / len(divisions)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _judged(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows whose label another group has too; of others heads that did not see them know nothing."""
    pairs = np.unique(np.stack([labels, groups], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=labels.max() + 1)[labels] > 1


def _enough(labels: np.ndarray, groups: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The rows that are left, and all of the classes that would have too few groups without the others."""
    kept = np.zeros(len(labels), bool)
    kept[np.flatnonzero(left)[_judged(labels[left], groups[left])]] = True
    lost = np.bincount(labels[kept], minlength=labels.max() + 1) == 0
    return kept | lost[labels]


def _wrong(labels: np.ndarray, probabilities: np.ndarray, judged: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    found = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    return np.asarray(found, bool) & judged


def linked(num_rows: int, groups: np.ndarray, together: Sequence[Sequence[int]]) -> np.ndarray:
    """Numbers of groups, int64 ``(num_rows,)``: rows of one group, or of one of the sequences, have the same."""
    _, numbers = np.unique(groups.astype(object), return_inverse=True)
    left = [row for rows in together for row in rows[1:]]
    right = [rows[0] for rows in together for _ in rows[1:]]
    size = num_rows + numbers.max() + 1  # a node for each row, and one for each group
    first = np.concatenate([np.arange(num_rows), np.array(left, np.int64)])
    second = np.concatenate([num_rows + numbers, np.array(right, np.int64)])
    graph = scipy.sparse.coo_array((np.ones(len(first)), (first, second)), shape=(size, size))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1][:num_rows]
