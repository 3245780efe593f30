"""What is wrong with a catalog: findings from a scan, each with its rows and advice in words. Pure functions."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.csgraph

from retailray.config import CheckSection

HASH_BITS = 64
ADVICE = {
    "errors": "These images cannot be used. Replace the files or drop the rows.",
    "missing": "These rows name images that do not exist. Check catalog.root, catalog.image_template and the upload.",
    "orphans": "These images lie in the folder and no row names them: lost rows, or files to tidy away.",
    "exact_duplicates": "The same file several times. Copies add weight in training and no knowledge; keep one, or "
    "give them one catalog.group.",
    "near_duplicates": "Nearly the same picture several times. Put them into one catalog.group, so that a split keeps "
    "them together.",
    "leakage": "The same picture in more than one split: the measured accuracy will be too good. Set catalog.group to "
    "the product, or drop the copies.",
    "duplicate_ids": "Several rows have one id. Only the first is used.",
    "empty_labels": "These rows have no label. They can be scored, and are left out of training.",
    "similar_labels": "These labels look like one label in several spellings. Unite them with catalog.label_map.",
    "small_classes": "These labels have fewer than {min_images} rows. Collect more, merge them, or expect little.",
    "imbalance": "The largest label has {ratio:.0f} times the rows of the smallest. Report macro F1 beside accuracy, "
    "and collect the rare ones.",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One finding: how often, what to do, and a few examples (texts, or groups of row numbers for pictures)."""

    name: str
    count: int
    advice: str
    examples: Sequence[Any] = ()


def same_content(sha256: Sequence[Any]) -> list[list[int]]:
    """Groups of row numbers whose bytes are equal, each of two rows or more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(sha256):
        if isinstance(digest, str):  # rows that failed have none (pandas says None or NaN)
            groups[digest].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_content(phash: np.ndarray, rows: np.ndarray, *, max_distance: int) -> list[list[int]]:
    """Groups of rows whose 64-bit perceptual hashes are linked by Hamming distances of at most ``max_distance``.

    Hashes within distance d agree in at least one of d + 1 bands (pigeonhole), so only rows that share a band are
    compared.

    Args:
        phash: uint64 (N,). rows: int (N,), the row numbers to report.
    """
    values, member = np.unique(phash, return_inverse=True)
    edges = [_band_pairs(values, shift, width, max_distance) for shift, width in _bands(max_distance + 1)]
    left, right = (np.concatenate([pair[side] for pair in edges]) for side in (0, 1))
    graph = scipy.sparse.coo_matrix((np.ones(len(left)), (left, right)), shape=(len(values), len(values)))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    of_row = component[member]
    order = np.argsort(of_row, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(of_row[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1]


def _bands(count: int) -> Iterable[tuple[int, int]]:
    edges = np.linspace(0, HASH_BITS, count + 1).astype(int)
    return [(int(low), int(high - low)) for low, high in itertools.pairwise(edges)]


def _band_pairs(values: np.ndarray, shift: int, width: int, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of indices into ``values`` that agree in one band and are near in all bits."""
    keys = (values >> np.uint64(shift)) & np.uint64((1 << width) - 1) if width < HASH_BITS else values
    order = np.argsort(keys, kind="stable")
    left: list[np.ndarray] = [np.empty(0, np.int64)]
    right: list[np.ndarray] = [np.empty(0, np.int64)]
    for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        for position in range(len(group) - 1):
            rest = group[position + 1 :]
            near = np.bitwise_count(values[rest] ^ values[group[position]]) <= max_distance
            left.append(np.full(int(near.sum()), group[position]))
            right.append(rest[near])
    return np.concatenate(left), np.concatenate(right)


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ only in case, white space or punctuation between words."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups["".join(letter for letter in label.casefold() if letter.isalnum())].append(label)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def find_problems(
    scan: pd.DataFrame,
    orphans: Sequence[str],
    labels: Mapping[str, int],
    *,
    has_labels: bool,
    section: CheckSection,
) -> list[Result]:
    """Every finding of a scanned catalog; those that found nothing have count 0.

    Args:
        scan: one row a catalog row: ``id, label, split, line, file, error_code, message, sha256, phash``.
        orphans: images in the folder that no row names. labels: rows a label.
    """
    bad = scan[~scan.error_code.isin(["", "not_found", "duplicate_id"])]
    missing, repeated = scan[scan.error_code == "not_found"], scan[scan.error_code == "duplicate_id"]
    exact = same_content(scan.sha256.tolist())
    hashed = scan[scan.phash.notna()]
    near = near_content(hashed.phash.to_numpy(np.uint64), hashed.index.to_numpy(), max_distance=section.near_distance)
    copies = {row for group in exact for row in group[1:]}
    near_only = [rest for group in near if len(rest := [row for row in group if row not in copies]) > 1]
    splits = scan.split.to_numpy()
    leaks = [group for group in near if len({splits[row] for row in group}) > 1]
    unlabelled = scan[scan.label == ""] if has_labels else scan[:0]
    small = {label: count for label, count in labels.items() if count < section.min_images}
    ratio = max(labels.values()) / min(labels.values()) if labels else 1.0
    variants = similar_labels(labels)
    found: dict[str, tuple[int, Sequence[Any]]] = {
        "errors": (len(bad), _where(bad)),
        "missing": (len(missing), _where(missing)),
        "orphans": (len(orphans), list(orphans[:5])),
        "exact_duplicates": (sum(len(group) - 1 for group in exact), exact[:8]),
        "near_duplicates": (sum(len(group) - 1 for group in near_only), near_only[:8]),
        "leakage": (len(leaks), leaks[:8]),
        "duplicate_ids": (len(repeated), _where(repeated)),
        "empty_labels": (len(unlabelled), _where(unlabelled)),
        "similar_labels": (len(variants), [" / ".join(map(repr, group)) for group in variants[:5]]),
        "small_classes": (len(small), [f"{label}: {count}" for label, count in list(small.items())[:8]]),
        "imbalance": (int(ratio > section.max_imbalance), []),
    }
    numbers = {"min_images": section.min_images, "ratio": ratio}
    return [Result(name, count, ADVICE[name].format(**numbers), examples) for name, (count, examples) in found.items()]


def _where(rows: pd.DataFrame, limit: int = 5) -> list[str]:
    return [f"{row.id} (line {row.line}): {row.message}".removesuffix(": ") for row in rows.head(limit).itertuples()]
