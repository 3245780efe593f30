"""One answer for a product: the rules against formulas written out, and the choice against rules that are known."""

import numpy as np
import pytest

from retailray.models.probabilities import KEPT, most_probable, spread
from retailray.models.products import MIN_PRODUCTS, UNCHOSEN, Combination, choose_combination, grouped, majority

C = 6


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def answers(combination, probabilities, counts):
    starts = np.cumsum(counts) - counts
    return combination(
        probabilities.__getitem__, np.arange(len(probabilities)), starts, num_classes=probabilities.shape[1]
    )


def by_hand(rule, foreign, growth, images):
    """The formulas of the module's docstring, for one product."""
    if len(images) == 1:
        return images[0]
    if rule == "mean":
        logs = np.log(images.mean(0))
    elif rule == "weighted_mean":
        logs = np.log(np.average(images, axis=0, weights=images.max(1)))
    else:
        weights = images.max(1) if rule == "weighted_mixture" else None
        logs = np.average(np.log((1 - foreign) * images + foreign / images.shape[1]), axis=0, weights=weights)
    return softmax(len(images) ** growth * logs)


@pytest.mark.parametrize(
    ("rule", "foreign"),
    [("mean", 0.0), ("weighted_mean", 0.0), ("mixture", 0.0), ("mixture", 0.2), ("weighted_mixture", 0.1)],
)
@pytest.mark.parametrize("growth", [0.0, 0.4, -0.5])
def test_rules_are_what_their_formulas_say(rule, foreign, growth):
    generator = np.random.default_rng(0)
    counts = np.array([1, 2, 5, 1, 3])
    probabilities = softmax(2 * generator.normal(size=(counts.sum(), C)))
    found = answers(Combination(rule, foreign, growth), probabilities, counts)
    for row, images in zip(found, np.split(probabilities, np.cumsum(counts)[:-1]), strict=True):
        np.testing.assert_allclose(row, by_hand(rule, foreign, growth, images), atol=1e-9)


def test_a_product_of_any_size_gets_the_same_answer_in_pieces(monkeypatch):
    """Kind of fault: what is done some rows at a time differs where a piece ends within a product."""
    generator = np.random.default_rng(1)
    probabilities, counts = softmax(generator.normal(size=(1000, C))), np.array([3, 700, 1, 296])
    whole = answers(Combination(foreign=0.1, growth=0.3), probabilities, counts)
    monkeypatch.setattr("retailray.models.products.CELLS", 1)
    np.testing.assert_allclose(answers(Combination(foreign=0.1, growth=0.3), probabilities, counts), whole, rtol=1e-9)


@pytest.mark.parametrize("combination", [Combination(), Combination(foreign=0.3), Combination("mean")])
def test_a_product_of_one_image_says_what_its_image_says_of_many_classes_too(combination):
    """Kind of fault: what keeps logarithms finite takes its share of every class."""
    images = np.full((2, 20_000), 1e-4 / 19_999)
    images[:, 7] = 0.9999
    assert answers(combination, images[:1], np.array([1]))[0, 7] == 0.9999
    if not combination.foreign:  # else two images say so much less, and growth makes up for it
        assert answers(combination, images, np.array([2]))[0, 7] > 0.99


def test_one_image_that_is_sure_of_something_else_does_not_overrule_the_others():
    images = np.array([[0.7, 0.25, 0.05], [0.7, 0.25, 0.05], [0.0, 0.0, 1.0]])
    assert answers(Combination(foreign=0.0), images, np.array([3])).argmax() == 2
    assert answers(Combination(foreign=0.1), images, np.array([3])).argmax() == 0


def products(generator, num, *, foreign, size=3):
    """Images of a model that is right in about six of ten, in products of which some have one of another class."""
    truth = generator.integers(0, C, num)
    of_image = np.repeat(truth, size).reshape(num, size)
    wrong = generator.random(num) < foreign
    shown = of_image.copy()
    shown[wrong, 0] = (truth[wrong] + generator.integers(1, C, wrong.sum())) % C
    logits = generator.normal(size=(num * size, C))
    logits[np.arange(num * size), shown.ravel()] += 2.0
    names = np.repeat(np.arange(num), size).astype(str).astype(object)
    return softmax(1.5 * logits), of_image.ravel(), names, truth


@pytest.mark.parametrize("foreign", [0.0, 0.5, 1.0])
def test_what_is_chosen_is_as_good_as_the_best_rule_elsewhere(foreign):
    generator = np.random.default_rng(2)
    probabilities, labels, names, _ = products(generator, 400, foreign=foreign)
    choice = choose_combination(probabilities.__getitem__, labels, names, num_classes=C)
    assert choice.on == "validation products with several images"
    assert choice.num_products == 400
    probabilities, _, _, truth = products(generator, 4000, foreign=foreign)
    counts = np.full(4000, 3)

    def right(combination):
        return (answers(combination, probabilities, counts).argmax(1) == truth).mean()

    rules = [Combination("mean"), Combination("weighted_mean"), *(Combination(foreign=f) for f in (0, 0.1, 0.3, 0.5))]
    assert right(choice.combination) >= max(map(right, rules)) - 0.01


def test_confidences_of_products_hold():
    """Kind of fault: three images that agree are taken for three independent ones, or for one."""
    generator = np.random.default_rng(3)
    probabilities, labels, names, _ = products(generator, 2000, foreign=0.0)
    choice = choose_combination(probabilities.__getitem__, labels, names, num_classes=C)
    probabilities, _, _, truth = products(generator, 4000, foreign=0.0)
    found = answers(choice.combination, probabilities, np.full(4000, 3))
    assert abs(found.max(1).mean() - (found.argmax(1) == truth).mean()) < 0.02


def test_without_products_of_several_images_some_are_put_together():
    generator = np.random.default_rng(4)
    probabilities, labels, _, _ = products(generator, 100, foreign=0.0)
    alone = np.arange(300).astype(str).astype(object)
    choice = choose_combination(probabilities.__getitem__, labels, alone, num_classes=C)
    assert choice.on.startswith("products put together")
    assert choice.num_products >= MIN_PRODUCTS
    few = choose_combination(probabilities[:20].__getitem__, labels[:20], alone[:20], num_classes=C)
    assert few.combination == UNCHOSEN.combination
    assert few.on.startswith("nothing")


def test_what_is_kept_of_many_classes_is_the_most_probable_and_the_rest_is_spread():
    probabilities = softmax(2 * np.random.default_rng(5).normal(size=(10, 200))).astype(np.float32)
    classes, kept = most_probable(probabilities)
    assert classes.shape == kept.shape == (10, KEPT)
    assert (classes[:, 0] == probabilities.argmax(1)).all()
    assert (np.diff(kept, axis=1) <= 0).all()
    np.testing.assert_array_equal(kept, np.take_along_axis(probabilities, classes, axis=1))
    back = spread(classes, kept, 200)
    np.testing.assert_allclose(back.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.take_along_axis(back, classes, axis=1), kept)
    few = most_probable(probabilities[:, :3] / probabilities[:, :3].sum(1, keepdims=True))
    assert few[0].shape == (10, 3)


def test_equal_probabilities_come_in_the_order_of_classes():
    classes, _ = most_probable(np.full((2, 5), 0.2))
    assert classes.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_products_and_their_labels():
    order, starts = grouped(np.array(["b", "a", "b", "c", "a"], object))
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert starts.tolist() == [0, 2, 4]
    assert majority(np.array([3, 3, 1, 2, 2, 1]), np.array([0, 3])).tolist() == [3, 2]
    assert majority(np.array([0, 0, 1, 0, 0]), np.array([0, 3]), ignoring=0).tolist() == [1, 0]
