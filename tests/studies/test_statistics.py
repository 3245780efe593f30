"""Intervals, p-values and the winner against scipy, by simulation and by hand."""

import numpy as np
import pytest
import scipy.stats

from retailray.studies.statistics import compare_models, holm


def names(count):
    return np.array([f"p{number}" for number in range(count)], dtype=object)


def test_one_picture_a_product_and_one_seed_is_mcnemars_test():
    """Oracle: scipy's exact binomial test of the rows that only one model gets right."""
    rng = np.random.default_rng(0)
    right = {"a": rng.random((1, 200)) < 0.8, "b": rng.random((1, 200)) < 0.7}
    [pair] = compare_models(right, names(200), bootstrap=200).pairs
    only_a, only_b = int((right["a"] & ~right["b"]).sum()), int((right["b"] & ~right["a"]).sum())
    assert pair.p_value == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)
    assert pair.difference == pytest.approx((only_a - only_b) / 200)


def test_adjusted_p_values_are_holms():
    """Oracle: the definition, written the other way round: the largest of (m - k) p(k) over the smaller ones."""
    rng = np.random.default_rng(1)
    for size in (0, 1, 2, 7):
        found = rng.random(size).tolist()
        expected = [max(min(1.0, (size - sum(x < q for x in found)) * q) for q in found if q <= p) for p in found]
        assert holm(found) == pytest.approx(expected)


@pytest.mark.parametrize(("products", "seeds"), [(40, 3), (150, 3), (150, 2)])
def test_models_that_are_equally_good_have_a_winner_in_one_of_twenty_studies_at_most(products, seeds):
    """Three models of equal accuracy, whose seeds and products differ: a winner is a false one."""
    rng = np.random.default_rng(products + seeds)
    wrong = 0
    for number in range(100):
        hard = rng.normal(size=products)  # a product is as hard for each model
        right = {
            name: (hard + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(size=(seeds, products))) > -0.8 for name in "abc"
        }
        wrong += compare_models(right, names(products), bootstrap=200, seed=number).winner is not None
    assert wrong <= 9  # of 100; more has a chance of 3 % at 5 %


def test_a_better_model_wins_where_there_are_rows_enough_and_not_where_there_are_few():
    rng = np.random.default_rng(0)
    right = {
        "good": rng.random((3, 400)) < 0.9,
        "poor": rng.random((3, 400)) < 0.7,
        "worst": rng.random((3, 400)) < 0.5,
    }
    found = compare_models(right, names(400), bootstrap=300)
    assert (found.winner, list(found.accuracies), found.rivals) == ("good", ["good", "poor", "worst"], [])
    few = compare_models({name: hits[:, :8] for name, hits in right.items()}, names(8), bootstrap=300)
    assert few.winner is None
    assert few.rivals


def test_pictures_of_a_product_are_one_piece_of_evidence():
    """Kind of fault: ten pictures of a product count as ten: four products are then forty rows, and all is sure."""
    right = {"a": np.ones((2, 40), bool), "b": np.repeat([[True, False, False, False]] * 2, 10, axis=1)}
    groups = np.tile(names(4), 10)
    assert compare_models(right, groups, bootstrap=300).winner is None
    assert compare_models(right, names(40), bootstrap=300).winner == "a"


def test_all_right_is_not_certain():
    """Kind of fault: resamples of what never fails are all alike, and the interval is a point."""
    found = compare_models({"a": np.ones((3, 20), bool)}, names(20), bootstrap=200)
    low, high = found.accuracies["a"].interval
    assert (low, high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert (found.winner, found.why) == (None, "there is one model only")
    assert found.pairs == []


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Simulated: accuracy 0.8 on average over products of different difficulty, three pictures each, three seeds."""
    rng = np.random.default_rng(2)
    inside = 0
    for number in range(200):
        share = rng.beta(8, 2, 60)  # of a product's pictures that are got right, 0.8 on average
        right = {"a": rng.random((3, 180)) < np.repeat(share, 3)}
        low, high = compare_models(right, np.repeat(names(60), 3), bootstrap=200, seed=number).accuracies["a"].interval
        inside += low <= 0.8 <= high
    assert 182 <= inside <= 200  # of 200 at 95 %: 190, give or take 3 deviations


def test_the_best_of_models_that_have_learned_nothing_is_no_winner():
    """Kind of fault: the luckier one of two that say one label for everything is called better."""
    rng = np.random.default_rng(0)
    right = {"a": rng.random((3, 400)) < 0.3, "b": rng.random((3, 400)) < 0.1}
    found = compare_models(right, names(400), bootstrap=200, baseline=0.4)
    assert found.winner is None
    assert "most frequent label (40.0%)" in found.why
    assert compare_models(right, names(400), bootstrap=200, baseline=0.1).winner == "a"


def test_one_seed_names_no_winner():
    right = {"a": np.ones((1, 200), bool), "b": np.zeros((1, 200), bool)}
    assert "one seed" in compare_models(right, names(200), bootstrap=200).why


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_what_is_the_seeds_is_not_the_models(seeds):
    """Kind of fault: with rows enough, the luckier seeds of one of two equal models make it the better one."""
    rng = np.random.default_rng(seeds)
    wrong = 0
    for number in range(40):
        hard = rng.random(3000)
        right = {
            name: (hard < 0.7 + rng.normal(0, 0.015, (seeds, 1))) ^ (rng.random((seeds, 3000)) < 0.05) for name in "abc"
        }
        wrong += compare_models(right, names(3000), bootstrap=200, seed=number).winner is not None
    assert wrong <= 4  # of 40; more has a chance of 5 % at 5 %


def test_a_difference_that_no_seed_explains_is_sure_with_three_seeds():
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    right = {name: hard < top1 + rng.normal(0, 0.01, (3, 1)) for name, top1 in (("a", 0.9), ("b", 0.75), ("c", 0.5))}
    assert compare_models(right, names(2000), bootstrap=1000).winner == "a"
