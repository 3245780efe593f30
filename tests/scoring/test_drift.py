"""Drift: nothing moves by chance alone, and what moves is seen."""

import numpy as np
import pytest

from retailray.scoring.drift import distance


def draw(weights, rows, seed):
    names, counts = np.unique(np.random.default_rng(seed).choice(["a", "b", "c"], rows, p=weights), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def test_the_same_shop_is_stable_and_another_is_not():
    monday, tuesday = draw([0.5, 0.3, 0.2], 5000, 1), draw([0.5, 0.3, 0.2], 3000, 2)
    psi, js = distance(monday, tuesday)
    assert 0 <= psi < 0.01
    assert 0 <= js < 0.05
    psi, js = distance(monday, draw([0.2, 0.3, 0.5], 3000, 3))
    # by hand: 0.3 ln(0.5 / 0.2) for each of the two that traded places
    assert psi == pytest.approx(2 * 0.3 * np.log(2.5), rel=0.1)
    assert 0.2 < js < 0.3


def test_a_class_that_comes_or_goes_is_finite():
    psi, js = distance({"a": 100}, {"b": 100})
    assert 1 < psi < 20
    assert 0.9 < js <= 1
