import io

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from retailray.config import CheckSection
from retailray.data.synthetic import PRODUCTS, encode, render
from retailray.quality.findings import (
    conflicting_labels,
    find_problems,
    labels_of_products,
    near_content,
    same_content,
    similar_labels,
)


def brute_force(hashes, distance):
    pairs = set()
    for a in range(len(hashes)):
        for b in range(a + 1, len(hashes)):
            if int(hashes[a] ^ hashes[b]).bit_count() <= distance:
                pairs.add((a, b))
    return pairs


def test_near_content_finds_what_brute_force_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for number in range(60):  # near copies, 0 to 5 bits away
        flips = rng.choice(64, number % 6, replace=False)
        hashes[number + 200] = hashes[number] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    for distance in (0, 3, 5, 7):
        groups = near_content(hashes, np.arange(300), max_distance=distance)
        linked = {(a, b) for group in groups for a in group for b in group if a < b}
        pairs = brute_force(hashes, distance)
        assert pairs <= linked
        assert {row for pair in pairs for row in pair} == {row for group in groups for row in group}


def test_a_resaved_picture_is_near_and_another_is_not():
    rng = np.random.default_rng(1)
    first, other = render(PRODUCTS["mug"], rng), render(PRODUCTS["shoe"], rng)
    again = Image.open(io.BytesIO(encode(first, "jpg")))
    hashes = np.array([int(str(imagehash.phash(image)), 16) for image in (first, again, other)], np.uint64)
    assert near_content(hashes, np.array([10, 11, 12]), max_distance=3) == [[10, 11]]


def test_same_content_ignores_rows_that_failed():
    assert same_content(["a", None, "b", float("nan"), "a", None]) == [[0, 4]]


@pytest.mark.parametrize(
    ("labels", "conflict"), [(["mug", "cup"], True), (["mug", ""], False), (["mug", "mug"], False), (["", ""], False)]
)
def test_equal_pictures_conflict_only_with_two_labels(labels, conflict):
    """Kind of fault: a copy without a label counts as a copy with another label."""
    assert conflicting_labels([[0, 1]], labels) == ([[0, 1]] if conflict else [])


@pytest.mark.parametrize(("splits", "leaks"), [(["train", "test"], 1), (["train", "train"], 0)])
def test_the_same_picture_in_two_splits_is_leakage(splits, leaks):
    scan = pd.DataFrame(
        {"id": ["a", "b"], "image": ["a", "b"], "label": "mug", "group": ["a", "b"], "split": splits,
         "sha256": ["one", "two"],
         "phash": np.array([7, 7], np.uint64), "error_code": "", "message": "", "file": "c.csv", "line": [2, 3]}
    )  # fmt: skip
    found = find_problems(scan, {"mug": 2}, orphans=[], unread={}, class_folders=False, section=CheckSection())
    assert next(result for result in found if result.name == "leakage").count == leaks


def test_products_with_several_labels():
    scan = pd.DataFrame({"group": ["p", "p", "q", "q", "r"], "label": ["mug", "cup", "mug", "", "mug"]})
    assert labels_of_products(scan) == {"p": ["cup", "mug"]}


def test_similar_labels():
    assert similar_labels(["T-Shirt", "t shirt", "mug", "lamp "]) == [["T-Shirt", "t shirt"]]
