"""Suspicious labels: wrong ones that are planted are found, and nothing is taken for knowledge that is none."""

import numpy as np
import pytest

from retailray.quality.suspicion import linked, suspicion

C, D, N = 6, 20, 600


@pytest.fixture(scope="module")
def clouds():
    """Features of classes that overlap a little, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(N) % C
    centres = generator.normal(size=(C, D)) * 1.2
    return centres[labels] + generator.normal(size=(N, D)), labels


def flipped(labels, num, seed):
    generator = np.random.default_rng(seed)
    changed = generator.choice(len(labels), num, replace=False)
    wrong = labels.copy()
    wrong[changed] = (labels[changed] + generator.integers(1, C, num)) % C
    return wrong, changed


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_wrong_labels_come_first_with_the_right_one(clouds, share):
    features, truth = clouds
    labels, changed = flipped(truth, int(share * N), seed=1)
    found = suspicion(features, labels, np.arange(N), num_classes=C)
    first = np.argsort(found.score)[: len(changed)]
    assert np.isin(first, changed).mean() >= 0.9
    assert (found.suggested[first] == truth[first]).mean() >= 0.9
    assert np.isin(np.flatnonzero(found.suspicious), changed).mean() >= 0.85
    assert found.suspicious.sum() >= 0.7 * len(changed)


def test_clean_labels_are_left_alone(clouds):
    features, labels = clouds
    found = suspicion(features, labels, np.arange(N), num_classes=C)
    assert found.suspicious.mean() < 0.02
    calm = ~found.suspicious & (found.score > 0.5)
    assert calm.mean() > 0.95
    assert (found.suggested[calm] == labels[calm]).all()
    assert np.allclose(found.suggested_score[calm], found.score[calm])


def test_a_copy_with_the_same_wrong_label_does_not_vouch_for_it(clouds):
    """Kind of fault: copies of a picture stand in several folds, so that heads know its wrong label by heart."""
    features, truth = clouds
    labels, changed = flipped(truth, 30, seed=2)
    own = np.random.default_rng(3).normal(size=(N, 300))  # by which a head can tell every picture from all others
    features = np.concatenate([features, own], axis=1)
    features = np.concatenate([features, *[features[changed]] * 3])
    labels = np.concatenate([labels, *[labels[changed]] * 3])
    alone = np.arange(len(labels))
    together = alone.copy()
    together[N:] = np.tile(changed, 3)
    apart, kept = (suspicion(features, labels, groups, num_classes=C) for groups in (alone, together))
    assert kept.score[changed].mean() < 0.15 < 0.5 < apart.score[changed].mean()


def test_of_a_label_that_one_product_alone_has_nothing_is_said(clouds):
    features, labels = clouds
    labels, groups = labels.copy(), np.arange(N)
    labels[:3], groups[:3] = C, 0
    found = suspicion(features, labels, groups, num_classes=C + 1)
    assert np.isnan(found.score[:3]).all()
    assert np.isnan(found.suggested_score[:3]).all()
    assert (found.suggested[:3] == C).all()
    assert not found.suspicious[:3].any()
    assert not np.isnan(found.score[3:]).any()


def test_rows_of_a_product_or_of_a_picture_are_linked():
    products = np.array(["a", "b", "a", "c", "d", "e"], object)
    numbers = linked(6, products, [[1, 3], [3, 4]])
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3] == numbers[4]
    assert len(set(numbers)) == 3
    assert len(set(linked(3, np.array(["x", "y", "z"], object), []))) == 3
