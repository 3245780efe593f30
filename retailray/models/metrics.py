"""How good predictions are: scikit-learn's measures on names, calibration, and bootstrap intervals."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import scipy.sparse

ECE_BINS = 15


def classification_metrics(
    truth: np.ndarray,
    predicted: np.ndarray,
    score: np.ndarray,
    top: list[list[str]],
    *,
    bootstrap: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Measures of N predictions whose true labels the model knows.

    Args:
        truth, predicted: names (N,). score: confidence of the prediction, float (N,). top: up to five names a row,
            best first. bootstrap: resamples behind the 95 % intervals. groups: product names (N,), of which
            whole ones are drawn; None: every row is a product of its own.

    Returns:
        ``top1, top5, macro_f1`` (over the labels that occur in the truth), ``ece`` (15 bins of equal width, Guo et al.
        2017), ``num_rows``, ``per_class`` and ``intervals``.
    """
    from sklearn.metrics import precision_recall_fscore_support  # a second, which commands that do not call this save

    labels = sorted(set(truth))
    rows_or_groups = np.arange(len(truth)) if groups is None else groups
    correct = (truth == predicted).astype(float)
    in_top5 = np.array([name in names[:5] for name, names in zip(truth, top, strict=True)], dtype=float)
    of_truth, of_guess, _ = _numbered(truth, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        of_truth, of_guess, labels=np.unique(of_truth), zero_division=0
    )
    per_class = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(labels, precision, recall, f1, support, strict=True)
    }
    return {
        "top1": float(correct.mean()),
        "top5": float(in_top5.mean()),
        "macro_f1": float(f1.mean()),
        "ece": calibration_error(score, correct),
        "num_rows": len(truth),
        "intervals": _intervals(truth, predicted, correct, in_top5, rows_or_groups, bootstrap, seed)
        if bootstrap
        else {},
        "per_class": per_class,
    }


def calibration_error(score: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: confidence float (N,) against hits 0 or 1 (N,), 15 bins of equal width.

    Of each bin the share of rows times |accuracy - mean confidence|. torchmetrics' takes four seconds to import.
    """
    hits, confidences = (np.histogram(score, ECE_BINS, (0, 1), weights=values)[0] for values in (correct, score))
    return float(np.abs(hits - confidences).sum() / len(score))


def _intervals(
    truth: np.ndarray,
    predicted: np.ndarray,
    correct: np.ndarray,
    in_top5: np.ndarray,
    groups: np.ndarray,
    num_resamples: int,
    seed: int,
) -> dict[str, list[float]]:
    """95 % percentile intervals; whole products are drawn with replacement, since images of a product are alike."""
    of_truth, of_guess, names = _numbered(truth, predicted)
    size = len(names)
    draws: dict[str, list[float]] = {"top1": [], "top5": [], "macro_f1": []}
    for times in resampled_rows(groups, num_resamples, seed):
        support = np.bincount(of_truth, times, size)
        guessed = np.bincount(of_guess, times, size)
        f1 = 2 * np.bincount(of_truth, times * correct, size) / np.maximum(support + guessed, 1)
        draws["top1"].append((times @ correct) / times.sum())
        draws["top5"].append((times @ in_top5) / times.sum())
        draws["macro_f1"].append(f1[support > 0].mean())
    return {name: [float(value) for value in np.percentile(values, [2.5, 97.5])] for name, values in draws.items()}


def resampled_rows(groups: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw products with replacement; how often each row is in a resample, float ``(N,)``.

    Args:
        groups: product names, object ``(N,)``.
    """
    products, of_row = np.unique(groups.astype(object), return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(num_resamples):
        drawn = generator.integers(0, len(products), len(products))
        yield np.bincount(drawn, minlength=len(products))[of_row].astype(float)


def _numbered(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers in place of names ``(N,)`` and ``(N,)``, and the sorted names, object ``(L,)``.

    numpy makes all texts of an array as long as the longest where it chooses the type itself.
    """
    names, numbers = np.unique(np.concatenate([truth, predicted]).astype(object), return_inverse=True)
    return numbers[: len(truth)], numbers[len(truth) :], names


def confusion(truth: np.ndarray, predicted: np.ndarray) -> tuple[scipy.sparse.csr_array, list[str]]:
    """Counts ``(L, L)``, int64, rows the truth, and the labels that occur on either side."""
    of_truth, of_guess, names = _numbered(truth, predicted)
    ones = np.ones(len(truth), np.int64)
    matrix = scipy.sparse.coo_array((ones, (of_truth, of_guess)), shape=(len(names), len(names)))
    return matrix.tocsr(), names.tolist()  # which adds up what is in one place


def confused_pairs(truth: np.ndarray, predicted: np.ndarray, *, limit: int) -> list[tuple[str, str, int]]:
    """(true label, predicted label, rows), most frequent first."""
    wrong = truth != predicted
    pairs = Counter(zip(truth[wrong], predicted[wrong], strict=True)).most_common(limit)
    return [(true, guess, count) for (true, guess), count in pairs]
