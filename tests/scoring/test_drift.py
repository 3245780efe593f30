"""Drift: nothing moves by chance alone, and what moves is seen."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from retailray.scoring.drift import Drift, OutlierModel, distance, embedding_distance


def draw(weights, rows, seed):
    names, counts = np.unique(np.random.default_rng(seed).choice(["a", "b", "c"], rows, p=weights), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def test_the_same_shop_is_stable_and_another_is_not():
    monday, tuesday = draw([0.5, 0.3, 0.2], 5000, 1), draw([0.5, 0.3, 0.2], 3000, 2)
    psi, noise, js = distance(monday, tuesday)
    # under 'nothing changed' the index is some chi-squared of 2 degrees of freedom (Yurdakul 2018)
    assert noise == pytest.approx(scipy.stats.chi2.ppf(0.99, 2) * (1 / 5000 + 1 / 3000), rel=0.2)
    assert 0 <= psi < 0.01
    assert 0 <= js < 0.05
    psi, _, js = distance(monday, draw([0.2, 0.3, 0.5], 3000, 3))
    # by hand: 0.3 ln(0.5 / 0.2) for each of the two that traded places
    assert psi == pytest.approx(2 * 0.3 * np.log(2.5), rel=0.1)
    assert 0.2 < js < 0.3


def test_a_class_that_comes_or_goes_is_finite():
    psi, _, js = distance({"a": 100}, {"b": 100})
    assert 1 < psi < 20
    assert 0.9 < js <= 1


def test_embeddings_of_the_same_pictures_differ_by_chance_and_others_by_more():
    draw = np.random.default_rng(0).normal
    reference, same, moved = draw(size=(400, 16)), draw(size=(300, 16)), draw(0.7, 1, size=(300, 16))
    psi, noise, _ = embedding_distance(reference, same)
    assert psi < noise < psi + 0.1
    psi, noise, js = embedding_distance(reference, moved)
    assert psi > 0.3 + noise
    assert js > 0.2


@pytest.mark.slow
def test_quiet_runs_pass_the_noise_once_in_a_hundred_times():
    """Kind of fault: at the mean of chance, half of all quiet runs are above chance."""
    generator, loud = np.random.default_rng(5), 0
    for _ in range(150):
        counts = [dict(enumerate(generator.multinomial(size, np.full(40, 1 / 40)).tolist())) for size in (400, 300)]
        psi, noise, _ = distance(*counts)
        loud += psi > noise
    assert loud <= 5
    loud = 0
    for _ in range(60):
        rows = generator.normal(size=(500, 4)) @ np.array([[1, 0.9, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]])
        psi, noise, _ = embedding_distance(rows[:300], rows[300:])
        loud += psi > noise
    assert loud <= 4


@pytest.mark.parametrize(("psi", "expected", "above"), [(0.3, 0.1, 0.2), (0.1, 0.3, 0.0)])
def test_what_sampling_explains_is_no_drift(psi, expected, above):
    assert Drift("labels", "previous run", 100, psi, expected, 0.1).psi_above_noise == pytest.approx(above)


def test_labels_of_validation_rows_inform_and_do_not_gate():
    """They are a selection, and not the catalog."""
    shifted = Drift("labels", "validation rows", 100, 2.0, 0.1, 0.5)
    assert not shifted.gates
    assert all(dataclasses.replace(shifted, what=what).gates for what in ("confidence", "embeddings"))
    assert dataclasses.replace(shifted, reference="previous run").gates


def test_what_is_unusual_is_the_same_in_sql_and_by_hand():
    import duckdb

    rows = np.random.default_rng(1).normal(3, 2, size=(1000, 4))
    usual = OutlierModel.of(rows)
    far = [3.0, 3.0, 3.0, 30.0]
    [(odd, plain)] = duckdb.execute(
        f"select {usual.sql('far')}, {usual.sql('near')} from (select ?::float[] as far, ?::float[] as near)",
        [far, rows.mean(0).tolist()],
    ).fetchall()
    assert odd == pytest.approx((((np.array(far) - usual.mean) / usual.scale) ** 2).mean(), rel=1e-5)
    assert plain == pytest.approx(0, abs=1e-9)
    assert odd > usual.limit > 2
