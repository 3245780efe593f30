"""Quantiles of distributions over intervals, by numbers that are drawn, and what an interval promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.models.intervals import FEWEST, MOST, Intervals, fit_tail, make_intervals
from retailray.training.numbers import TrueValues

VALUES = {
    "continuous": np.random.default_rng(0).lognormal(1, 1, 1_000),
    "prices": np.random.default_rng(1).choice([0.99, 1.99, 2.49, 4.99], 200),
    "a few, and one very often": np.r_[np.zeros(900), np.random.default_rng(2).normal(5, 1, 100)],
    "few rows": np.array([1.0, 2, 3, 4, 5, 6, 7]),
    "two values": np.array([3.0, -3.0]),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_training_value_lies_in_the_interval_that_it_belongs_to(name):
    values = VALUES[name]
    found = make_intervals(values)
    at = found.index_of(values)
    lows, highs = np.array(found.lows), np.array(found.highs)
    assert ((lows[at] <= values) & (values <= highs[at])).all()
    assert (highs[:-1] < lows[1:]).all(), "no value lies in two"
    assert set(lows) | set(highs) <= set(values.tolist()), "bounds are values that were seen"
    assert len(found) <= MOST
    assert len(set(found.names)) == len(found) == len(np.unique(at)), "none is without a row"
    assert Intervals.model_validate_json(found.model_dump_json()) == found


def test_few_values_are_an_interval_each_and_many_are_divided_evenly():
    assert make_intervals(VALUES["prices"]).lows == make_intervals(VALUES["prices"]).highs == (0.99, 1.99, 2.49, 4.99)
    sizes = np.bincount(make_intervals(VALUES["continuous"]).index_of(VALUES["continuous"]))
    assert len(sizes) == MOST
    assert sizes.max() - sizes.min() <= 2


def test_values_that_were_not_seen_belong_to_the_nearest_interval():
    found = Intervals(lows=(0.0, 10.0, 20.0), highs=(4.0, 12.0, 20.0))
    assert found.index_of(np.array([-5.0, 6.9, 7.1, 15.9, 16.1, 99.0])).tolist() == [0, 0, 1, 1, 2, 2]


def draws_of(found, shares, rng, count=200_000):
    """Numbers as a distribution says, by drawing an interval and then a number in it."""
    at = rng.choice(len(found), count, p=shares)
    return rng.uniform(np.array(found.lows)[at], np.array(found.highs)[at])


@pytest.mark.parametrize("name", VALUES)
def test_quantiles_are_those_of_numbers_that_are_drawn(name):
    found, rng = make_intervals(VALUES[name]), np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(len(found)))
    drawn = np.sort(draws_of(found, shares, rng))
    for level in (0.05, 0.1, 0.5, 0.77, 0.95):
        value = found.quantile(shares[None], level)[0]
        # between the quantiles of a slightly smaller and a slightly larger share of what was drawn
        low, high = np.quantile(drawn, [level - 0.005, level + 0.005])
        assert low - 1e-9 <= value <= high + 1e-9


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), level=st.floats(0.01, 0.49), kind=st.sampled_from(sorted(VALUES)))
def test_a_value_lies_within_two_quantiles_exactly_if_its_depth_says_so(seed, level, kind):
    rng, found = np.random.default_rng(seed), make_intervals(VALUES[kind])
    shares = rng.dirichlet(np.ones(len(found)), 50)
    span = found.highs[-1] - found.lows[0]
    values = np.r_[rng.choice(VALUES[kind], 25), rng.uniform(found.lows[0] - span / 9, found.highs[-1] + span / 9, 25)]
    depths = found.depth(shares, values)
    low, high = found.quantile(shares, level), found.quantile(shares, 1 - level)
    within = (low - 1e-9 * span <= values) & (values <= high + 1e-9 * span)
    clear = np.abs(depths - level) > 1e-9
    assert (within == (depths >= level))[clear].all()


POPULAR = {
    "in the middle": (np.r_[np.random.default_rng(7).uniform(0, 250, 800), np.full(200, 109.99)], {109.99}),
    "at the top": (np.r_[np.random.default_rng(8).uniform(0, 90, 800), np.full(200, 99.0)], {99.0}),
    "nearly alone": (np.r_[np.random.default_rng(9).normal(5, 2, 75), np.full(4_925, 5.0)], {5.0}),
    "of seven rows": (np.array([1.0, 2, 5, 5, 5, 5, 5]), {5.0}),
    "more than intervals": (np.repeat(np.arange(300.0), 7), set()),
    "many, and others": (
        np.r_[np.repeat(np.arange(0, 64, 2.0), 100), np.random.default_rng(1).uniform(0, 64, 3_000)],
        set(),
    ),
}


@pytest.mark.parametrize("name", POPULAR)
def test_a_value_that_is_met_often_is_an_interval_of_its_own(name):
    """Kind of fault: a popular price shares an interval with smaller ones, and is never predicted."""
    values, often = POPULAR[name]
    found = make_intervals(values)
    assert often <= {low for low, high in zip(found.lows, found.highs, strict=True) if low == high}
    assert 2 <= len(found) <= MOST
    assert sorted(np.unique(found.index_of(values))) == list(range(len(found)))


@pytest.mark.parametrize("confidence", [1.0, 0.3, 3.0])
@pytest.mark.parametrize("kind", ["continuous", "prices"])
def test_fitted_intervals_hold_the_share_that_is_asked_for_however_sure_the_model_is(kind, confidence):
    """Kind of fault: an interval is as wide as the model says, and a model may be too sure or not sure enough."""
    found, rng = make_intervals(VALUES[kind]), np.random.default_rng(3)
    true = rng.dirichlet(np.full(len(found), 0.3), 6_000)
    values = np.array([draws_of(found, shares, rng, 1)[0] for shares in true])
    said = true**confidence + 1e-9
    said /= said.sum(1, keepdims=True)
    for level in (50, 80, 95):
        tail, used = fit_tail(found, said[:3_000], values[:3_000], np.arange(3_000).astype(str), level)
        assert used == 3_000
        low, high = found.quantiles(said[3_000:], [tail, 1 - tail])
        share = 100 * ((low <= values[3_000:]) & (values[3_000:] <= high)).mean()
        assert share > level - 2.5
        if kind == "continuous" or confidence == 1:  # of few values intervals can hold more, and no less
            assert share < level + (2.5 if kind == "continuous" else 30)


def test_pictures_that_all_say_the_same_lose_no_value_of_the_interval():
    """Kind of fault: a bound falls on the end of an interval, and by rounding the interval is left out."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        found = make_intervals(np.repeat(np.arange(1.0, 6), 20))
        shares = rng.dirichlet(np.full(5, 2.0)).astype(np.float32)
        values = rng.choice(np.arange(1.0, 6), 60)
        said = np.repeat(shares[None], 60, axis=0)
        tail, _ = fit_tail(found, said, values, np.arange(60).astype(str), 80)
        low, high = found.quantiles(said, [tail, 1 - tail])
        assert ((low <= values) & (values <= high)).mean() >= 0.8


@pytest.mark.parametrize("products", [10, 14, 40])
@pytest.mark.parametrize("images", [(1, 1), (3, 3), (1, 10)])
def test_images_of_a_product_count_as_one(products, images):
    """Kind of fault: thirty photos of three products promise what thirty products would, or ten of one count most."""
    rng, found, shares = np.random.default_rng(1), make_intervals(VALUES["continuous"]), []
    for _ in range(600):
        sizes = rng.choice(images, products)
        of = np.repeat(np.arange(products), sizes)
        said = np.full((len(of), len(found)), 1 / len(found))
        together = rng.uniform(size=products)[of]  # images of a product are alike, and not the same
        place = np.where(rng.uniform(size=len(of)) < 0.8, together, rng.uniform(size=len(of)))
        values = np.array([found.quantile(said[:1], one)[0] for one in place])
        tail, used = fit_tail(found, said, values, of.astype(str), 80)
        assert used == products
        low, high = found.quantiles(said[:1], [tail, 1 - tail])
        fresh = draws_of(found, said[0], rng, 50)
        shares.append(((low <= fresh) & (fresh <= high)).mean())
    assert 0.79 < np.mean(shares) < 0.9


@pytest.mark.parametrize(("level", "needed"), [(80, FEWEST), (95, 19), (99, 99)])
def test_a_high_level_needs_more_products(level, needed):
    """Kind of fault: of ten products all lie within the smallest and the largest value, which is said to be fitted."""
    found = make_intervals(VALUES["continuous"])
    shares = np.random.default_rng(0).dirichlet(np.ones(len(found)), needed)
    groups = np.arange(needed).astype(str)
    values = np.random.default_rng(1).choice(VALUES["continuous"], needed)
    assert fit_tail(found, shares, values, groups, level)[1] == needed
    assert fit_tail(found, shares[1:], values[1:], groups[1:], level) == (pytest.approx((100 - level) / 200), 0)


def test_too_few_held_out_products_fit_nothing():
    found = make_intervals(VALUES["continuous"])
    shares = np.random.default_rng(0).dirichlet(np.ones(len(found)), 90)
    groups = np.repeat(np.arange(FEWEST - 1), 10).astype(str)
    assert fit_tail(found, shares[: len(groups)], np.ones(len(groups)), groups, 80) == (pytest.approx(0.1), 0)


@pytest.mark.parametrize("name", VALUES)
def test_the_error_in_training_is_that_of_the_published_median(name):
    """Kind of fault: torch measures one thing while it trains, and numpy publishes another."""
    rng, found = np.random.default_rng(4), make_intervals(VALUES[name])
    logits = torch.from_numpy(rng.normal(0, 3, (40, len(found)))).float()
    ids, values = np.arange(40) * 7, rng.normal(2, 1, 40)
    measure = TrueValues(found, ids, values, 0.0, 1.0).on(torch.device("cpu"))
    order = rng.permutation(40)
    errors = measure.errors(logits[order], torch.from_numpy(ids[order])).numpy()
    medians = found.quantile(logits.softmax(1).numpy(), 0.5)
    assert errors == pytest.approx(np.abs(medians - values)[order], abs=1e-4)


@pytest.mark.parametrize("wrong", [{"lows": (1.0,), "highs": ()}, {"lows": (), "highs": ()}])
def test_intervals_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="lows and highs"):
        Intervals(**wrong)
    for lows, highs in (((2.0, 1.0), (3.0, 4.0)), ((0.0,), (float("nan"),)), ((1.0,), (0.5,))):
        with pytest.raises(ValueError, match="ascending"):
            Intervals(lows=lows, highs=highs)
