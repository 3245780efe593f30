"""What is wrong with a catalog: findings from a scan, each with its rows and advice in words. Pure functions."""

import dataclasses
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.csgraph

from retailray.config import CheckSection
from retailray.data.class_folders import equal_leaves
from retailray.data.columns import SPLIT_NAMES

HASH_BITS = 64
ADVICE = {
    "errors": "These rows cannot be used. Replace the files, mend the lines, or drop the rows.",
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
    "similar_labels": "These labels look like one label in several spellings. Merge them with "
    "catalog.normalize_labels, where case, blanks or the Unicode form differ, or with catalog.label_map.",
    "small_classes": "These labels have fewer than {min_images} rows. Collect more, merge them, or expect little.",
    "imbalance": "The largest label has {ratio:.0f} times the rows of the smallest. Report macro F1 beside accuracy, "
    "and collect the rare ones.",
    "label_conflicts": "The same picture, byte for byte, with different labels. At most one of them is right; correct "
    "the others, or drop the rows.",
    "label_errors": "These labels are probably wrong: models that did not see the row expect another one. Go through "
    "them at review/index.html, the most suspicious first, and give the saved file to catalog.corrections.",
    "labels_without_training_rows": "These labels occur in validation or test rows only: no model can learn them. "
    "Move some of their products to training, or leave the rows out.",
    "equal_folder_names": "Folders of different parents with one name are one label. Set catalog.folder_labels to path "
    "to keep them apart.",
    "product_labels": "These products (catalog.group) have rows with different labels. At most one of them is right, "
    "or catalog.group names something else than products.",
    "several_labels": "These images have several categories, and the one with the largest box is their label. Set "
    "catalog.several_labels to error to leave them out.",
    "unread_files": "Files in the class folders that are not read, since their names are of no image format.",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One finding: how often, what to do, and a few examples (texts, or groups of row numbers for pictures)."""

    name: str
    count: int
    advice: str
    examples: Sequence[Any] = ()


def same_content(sha256: Sequence[object]) -> list[list[int]]:
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
    """Labels that differ only in case, white space, punctuation between words or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        letters = unicodedata.normalize("NFKC", label).casefold()
        groups["".join(letter for letter in letters if letter.isalnum())].append(label)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def conflicting_labels(groups: Iterable[Sequence[int]], labels: Sequence[str]) -> list[list[int]]:
    """Of groups of row numbers with equal pictures, those whose rows have different labels ('' is none)."""
    return [list(rows) for rows in groups if len({labels[row] for row in rows} - {""}) > 1]


def untrained_labels(labels: pd.Series, splits: pd.Series) -> dict[str, int]:
    """Labels with validation or test rows and without a training row, with how many; none without training rows."""
    trained = set(labels[splits == "train"])
    if not trained:
        return {}
    return labels[~labels.isin(trained) & (labels != "")].value_counts().sort_index().to_dict()


def find_problems(
    scan: pd.DataFrame,
    labels: Mapping[str, int],
    *,
    orphans: Sequence[str],
    unread: Mapping[str, int],
    class_folders: bool,
    section: CheckSection,
    several_labels: int = 0,
) -> list[Result]:
    """Every finding of a scanned catalog; those that found nothing have count 0.

    Args:
        scan: one row per catalog row: ``id, label, group, split, line, file, error_code, message, sha256, phash``.
        labels: rows per label. orphans: images in the folder that no row names. unread: files in class folders that are
            not read, by suffix. class_folders: labels are names of folders. several_labels: images of a COCO
            document with several categories.
    """
    # long because it is one list of all findings
    bad = scan[~scan.error_code.isin(["", "not_found", "duplicate_id"])]
    missing, repeated = scan[scan.error_code == "not_found"], scan[scan.error_code == "duplicate_id"]
    exact = same_content(scan.sha256.tolist())
    hashed = scan[scan.phash.notna()]
    near = near_content(hashed.phash.to_numpy(np.uint64), hashed.index.to_numpy(), max_distance=section.near_distance)
    copies = {row for group in exact for row in group[1:]}
    near_only = [rest for group in near if len(rest := [row for row in group if row not in copies]) > 1]
    splits = scan.split.to_numpy()
    leaks = [group for group in near if len({splits[row] for row in group}) > 1]
    conflicts = conflicting_labels(exact, scan.label.to_numpy())
    said_nothing = scan.error_code.isin(["bad_line", "bad_record"])
    unlabelled = scan[(scan.label == "") & ~said_nothing] if labels else scan[:0]
    small = {label: count for label, count in labels.items() if count < section.min_images}
    ratio = max(labels.values()) / min(labels.values()) if labels else 1.0
    variants = similar_labels(labels)
    untrained = untrained_labels(scan.label, scan.split)
    leaves = _equal_folder_names(scan) if class_folders else {}
    mixed = labels_of_products(scan)
    found: dict[str, tuple[int, Sequence[object]]] = {
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
        "label_conflicts": (len(conflicts), conflicts[:8]),
        "labels_without_training_rows": (len(untrained), _counts(untrained)),
        "equal_folder_names": (len(leaves), [f"{name}: {', '.join(folders)}" for name, folders in leaves.items()][:8]),
        "product_labels": (len(mixed), [f"{name}: {', '.join(several)}" for name, several in mixed.items()][:8]),
        "several_labels": (several_labels, []),
        "unread_files": (sum(unread.values()), _counts(unread)),
    }
    numbers = {"min_images": section.min_images, "ratio": ratio}
    return [Result(name, count, ADVICE[name].format(**numbers), examples) for name, (count, examples) in found.items()]


def labels_of_products(scan: pd.DataFrame) -> dict[str, list[str]]:
    """Products (``group``) whose rows have different labels, with these; '' is none."""
    labelled = scan[scan.label != ""]
    counts = labelled.groupby("group").label.nunique()
    mixed = labelled[labelled.group.isin(counts.index[counts > 1])]
    return {str(name): sorted(set(labels)) for name, labels in mixed.groupby("group").label}


def _equal_folder_names(scan: pd.DataFrame) -> dict[str, list[str]]:
    """Folders that are one label though their parents differ; the folders of the splits do not count."""
    folders = scan.image.str.rpartition("/")[0]
    named = [
        (folder.partition("/")[2] if SPLIT_NAMES.get(folder.split("/")[0].lower()) == split else folder, label)
        for folder, split, label in zip(folders, scan.split, scan.label, strict=True)
    ]
    return equal_leaves([folder for folder, label in named if label == folder.rpartition("/")[2]])


def _counts(counts: Mapping[str, int]) -> list[str]:
    return [f"{name}: {count}" for name, count in list(counts.items())[:8]]


def _where(rows: pd.DataFrame, limit: int = 5) -> list[str]:
    return [f"{row.id} (line {row.line}): {row.message}".removesuffix(": ") for row in rows.head(limit).itertuples()]
