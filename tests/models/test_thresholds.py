"""Thresholds for a target precision: promises that are kept on products they were not fitted on."""

import numpy as np
import pytest
import scipy.stats

from retailray.models.thresholds import NEVER, Validation, acceptance_curve, fit_promise, lower_bound


def validation(correct, scores, *, classes=None, groups=None, role="thresholds"):
    """Rows ``(N,)`` of one class, or of ``classes``, each a product of its own unless ``groups`` says."""
    predicted = np.full(len(scores), "a", object) if classes is None else classes
    groups = np.arange(len(scores)).astype(str) if groups is None else groups
    labels = np.where(correct, predicted, "other").astype(object)
    return Validation(labels, predicted, scores, groups.astype(object), np.full(len(scores), role, object))


def draw(generator, num_classes, num_rows, shape, overconfident):
    """Confidences ``(C, N)``, and which are right: as often as they say to the power of ``overconfident``."""
    scores = generator.beta(*shape, (num_classes, num_rows))
    return scores, generator.random((num_classes, num_rows)) < scores**overconfident


def simulate(num_rows, *, shape, overconfident, seeds, num_classes, target=0.95):
    """Seeds in which the products that are accepted are right less often than promised, and the share accepted."""
    below, accepted = 0, []
    names = np.array([f"class {number}" for number in range(num_classes)], object)
    for seed in range(seeds):
        scores, right = draw(np.random.default_rng(seed), num_classes, num_rows, shape, overconfident)
        rows = validation(right.ravel(), scores.ravel(), classes=np.repeat(names, num_rows))
        promise = fit_promise(rows, target_precision=target)
        fresh, _ = draw(np.random.default_rng(10**6 + seed), num_classes, 1000, shape, overconfident)
        taken = fresh >= np.array([promise.classes[name].threshold for name in names])[:, None]
        accepted.append(taken.mean())
        below += bool(taken.any()) and (fresh[taken] ** overconfident).mean() < target  # the truth, not another draw
    return below / seeds, float(np.mean(accepted))


@pytest.mark.slow
@pytest.mark.parametrize("overconfident", [1.0, 1.5])
@pytest.mark.parametrize("num_rows", [10, 30, 100, 300])
@pytest.mark.parametrize(("shape", "num_classes"), [((6, 1.2), 1), ((20, 1), 1), ((20, 1), 10)])
def test_what_is_promised_is_kept_in_nine_of_ten_cases(shape, num_classes, num_rows, overconfident):
    """Kind of fault: the luckiest of many looks at the same rows is taken for the precision that was asked for."""
    below, accepted = simulate(num_rows, shape=shape, overconfident=overconfident, seeds=200, num_classes=num_classes)
    assert below <= 0.1
    if num_rows <= 30:
        assert accepted == 0, "classes of so few products can promise nothing"
    if num_rows == 300 and shape == (20, 1) and overconfident == 1:
        assert accepted > 0.3, "and it is no promise to accept nothing"


def test_the_smallest_class_that_can_promise():
    """One product fewer promises nothing, on each side of the limit."""
    for count, promised in ((44, False), (45, True)):
        one = fit_promise(validation(np.full(count, True), np.linspace(0.6, 0.9, count)), target_precision=0.95)
        assert one.needed == 45
        assert (one.classes["a"].threshold < NEVER) == promised
        summary = one.summary()
        assert (summary["promised"], summary["too_small"]) == (int(promised), int(not promised))
        assert (summary["lowest_bound"] is not None) == promised
    assert one.classes["a"].bound == pytest.approx(scipy.stats.beta.ppf(0.1, 45, 1))
    assert one.thresholds(0.2).per_class == {"a": 0.6}
    assert one.thresholds(0.2).accept == NEVER, "a class that no validation row was taken for promises nothing"


def test_images_of_one_product_are_one_witness():
    """Kind of fault: forty pictures of one product are taken for forty pieces of evidence."""
    correct, scores = np.full(400, True), np.linspace(0.6, 0.9, 400)
    groups = np.repeat(np.arange(40), 10).astype(str)
    assert fit_promise(validation(correct, scores, groups=groups), target_precision=0.95).summary()["too_small"] == 1
    groups = np.repeat(np.arange(50), 8).astype(str)
    promise = fit_promise(validation(correct, scores, groups=groups), target_precision=0.95)
    assert promise.classes["a"].products == 50
    assert promise.classes["a"].accepted == 50


def test_rows_that_chose_the_epoch_or_the_temperature_promise_nothing():
    for role in ("epoch", "temperature"):
        rows = validation(np.full(500, True), np.full(500, 0.9), role=role)
        assert fit_promise(rows, target_precision=0.9).classes == {}


def test_rows_of_one_confidence_are_accepted_together():
    """The first fifty are right, and nothing tells them from the others."""
    correct = np.array([True] * 50 + [False] * 50)
    promise = fit_promise(validation(correct, np.full(100, 0.9)), target_precision=0.9)
    assert promise.classes["a"].threshold == NEVER


def test_the_lower_bound_is_clopper_and_pearsons():
    for right, count in ((0, 5), (3, 5), (5, 5), (90, 100)):
        expected = scipy.stats.binomtest(right, count).proportion_ci(0.8, method="exact").low
        assert lower_bound(np.array([right]), np.array([count]), 0.1)[0] == pytest.approx(expected, abs=1e-9)


def test_the_curve_tells_share_and_precision():
    scores, right = draw(np.random.default_rng(3), 1, 3000, (5, 2), 1)
    correct, scores = right[0], scores[0]
    curve = acceptance_curve(validation(correct, scores))
    for at in (0, len(curve.confidence) // 2, -1):
        accepted = scores >= curve.confidence[at]
        assert curve.share[at] == pytest.approx(accepted.mean())
        assert curve.precision[at] == pytest.approx(correct[accepted].mean())
    assert (curve.low <= curve.precision).all()
    assert (curve.precision <= curve.high).all()
    assert (np.diff(curve.share) <= 0).all()
    grouped = acceptance_curve(validation(correct, scores, groups=np.repeat(np.arange(300), 10).astype(str)))
    np.testing.assert_allclose(grouped.precision, curve.precision)
    copies = validation(
        np.repeat(correct, 10), np.repeat(scores, 10), groups=np.repeat(np.arange(3000), 10).astype(str)
    )
    wide = acceptance_curve(copies)
    assert (wide.high - wide.low)[0] == pytest.approx((curve.high - curve.low)[0], rel=0.2), "copies are no evidence"
