"""The deepest ancestor that is probable enough: sums against sums by hand, promises against labels that are known."""

import numpy as np
import pytest

from retailray.data.taxonomy import Taxonomy
from retailray.models.backing_off import back_off, levels_of
from retailray.models.meta import THRESHOLDS, Thresholds
from retailray.models.probabilities import most_probable
from retailray.models.thresholds import NEVER, Validation, fit_promise

LABELS = ["gala", "fuji", "pear", "milk", "soap", "fruit"]
PATHS = {
    "gala": ("food", "fruit", "apple", "gala"),
    "fuji": ("food", "fruit", "apple", "fuji"),
    "pear": ("food", "fruit", "pear"),
    "milk": ("food", "milk"),
    "soap": ("soap",),
    "fruit": ("food", "fruit"),  # a class that others lie below
}
TREE = Taxonomy(PATHS)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_probability_of_an_ancestor_is_that_of_all_below_it():
    probabilities = softmax(np.random.default_rng(0).normal(size=(50, 6)))
    classes, kept = most_probable(probabilities)
    predicted = classes[:, 0]
    levels = levels_of(TREE, LABELS)
    assert [level.depth for level in levels] == [3, 2, 1]
    for level in levels:
        found = level.probabilities(predicted, classes, kept)
        for row, label in enumerate(predicted):
            path = PATHS[LABELS[label]]
            if len(path) <= level.depth:
                assert np.isnan(found[row])
                continue
            below = [at for at, name in enumerate(LABELS) if PATHS[name][: level.depth] == path[: level.depth]]
            assert found[row] == pytest.approx(probabilities[row, below].sum(), abs=1e-6)


def test_a_root_of_everything_is_no_answer():
    tree = Taxonomy({"a": ("all", "x", "a"), "b": ("all", "x", "b"), "c": ("all", "y", "c")})
    assert [level.depth for level in levels_of(tree, ["a", "b", "c"])] == [2]


def test_the_deepest_that_is_probable_enough_is_taken():
    backing = back_off(TREE, LABELS, Thresholds(accept=0.8), None, None)
    probabilities = np.array([
        [0.5, 0.4, 0.05, 0.03, 0.02, 0.0],  # apple: 0.9
        [0.4, 0.2, 0.25, 0.05, 0.1, 0.0],  # fruit: 0.85
        [0.3, 0.1, 0.1, 0.4, 0.1, 0.0],  # food: 0.9
        [0.3, 0.1, 0.1, 0.1, 0.4, 0.0],  # soap has nothing above it
        [0.2, 0.1, 0.1, 0.1, 0.1, 0.4],  # the class fruit: food
    ])  # fmt: skip
    classes, kept = most_probable(probabilities)
    at, node, score = backing.accepted(classes[:, 0], classes, kept)
    told = [backing.levels[i][0].names[n] if i >= 0 else None for i, n in zip(at, node, strict=True)]
    assert told == ["food > fruit > apple", "food > fruit", "food", None, "food"]
    assert score[[0, 1, 2, 4]] == pytest.approx([0.9, 0.85, 0.9, 0.9])


def sample(generator, num):
    """Calibrated rows: the truth is drawn from the probabilities."""
    probabilities = softmax(2.5 * generator.normal(size=(num, 6)))
    truth = (probabilities.cumsum(1) > generator.random((num, 1))).argmax(1)
    return probabilities, truth


def test_what_is_promised_is_kept_at_every_level():
    """Of rows that a level accepts, the target is right there: in nine of ten draws, as is promised."""
    kept = []
    names = np.array(LABELS, object)
    for seed in range(60):
        generator = np.random.default_rng(seed)
        probabilities, truth = sample(generator, 1500)
        classes, top = most_probable(probabilities)
        groups = np.arange(1500).astype(str).astype(object)
        validation = Validation(names[truth], names[classes[:, 0]], top[:, 0], groups,
                                np.full(1500, THRESHOLDS, object), None, classes, top)  # fmt: skip
        thresholds = fit_promise(validation, target_precision=0.9).thresholds(0.2)
        backing = back_off(TREE, LABELS, thresholds, validation, 0.9)
        probabilities, truth = sample(generator, 20_000)
        classes, top = most_probable(probabilities)
        at, node, _ = backing.accepted(classes[:, 0], classes, top)
        accept = np.array([thresholds.per_class.get(label, thresholds.accept) for label in LABELS])
        at[top[:, 0] >= np.maximum(accept, 0.2)[classes[:, 0]]] = -1  # accepted as a class
        for position, (level, _) in enumerate(backing.levels):
            for number in range(len(level.names)):
                rows = (at == position) & (node == number)
                if rows.sum() > 200:
                    kept.append((level.within[truth[rows]] == number).mean())
    assert len(kept) > 30
    assert np.mean(np.array(kept) >= 0.9) >= 0.9


def test_without_rows_to_rest_on_nothing_is_promised():
    backing = back_off(TREE, LABELS, Thresholds(accept=0.5), None, 0.9)
    assert all((limits == NEVER).all() for _, limits in backing.levels)


def test_an_ancestor_that_is_called_like_a_class_elsewhere_goes_by_its_path():
    tree = Taxonomy({"accessories": ("electronics", "accessories"), "belt": ("clothing", "accessories", "belt"),
                     "tie": ("clothing", "accessories", "tie")})  # fmt: skip
    [deep, shallow] = levels_of(tree, ["accessories", "belt", "tie"])
    assert deep.labels == ["clothing > accessories"]
    assert shallow.labels == ["clothing", "electronics"]
    paths = Taxonomy({"a > b": ("a", "b"), "a > c": ("a", "c"), "d > e": ("d", "e")})
    assert levels_of(paths, ["a > b", "a > c", "d > e"])[0].labels == ["a", "d"]
