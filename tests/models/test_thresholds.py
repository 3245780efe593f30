"""Thresholds for a target precision: kept on rows they were not fitted on, careful where there are few."""

import numpy as np
import pytest

from retailray.models.thresholds import NEVER, PRIOR_ROWS, Validation, acceptance_curve, fit_thresholds


def draw(rows, seed, *, honesty=1.0):
    """Predictions of two classes, right as often as their confidence to the power of ``honesty`` says; b is harder."""
    generator = np.random.default_rng(seed)
    predicted = np.where(generator.random(rows) < 0.5, "a", "b")
    scores = np.where(predicted == "a", generator.beta(8, 2, rows), generator.beta(5, 2, rows)).astype(np.float32)
    right = generator.random(rows) < scores**honesty
    return np.where(right, predicted, "other"), predicted, scores


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_what_is_accepted_is_right_often_enough_on_new_rows(target):
    fitted = fit_thresholds(Validation(*draw(4000, 1)), target_precision=target, abstain=0.1)
    labels, predicted, scores = draw(40_000, 2)
    for name in "ab":
        accepted = (predicted == name) & (scores >= fitted.per_class[name])
        assert accepted.mean() > 0.02
        assert target - 0.02 < (labels[accepted] == name).mean() < target + 0.05
    assert fitted.per_class["b"] != fitted.per_class["a"]


def test_rows_speak_louder_than_a_confidence_that_is_too_high():
    rows = [Validation(*draw(4000, 1, honesty=power)) for power in (1, 2)]
    honest, sure = (fit_thresholds(part, target_precision=0.9, abstain=0) for part in rows)
    assert sure.per_class["a"] > honest.per_class["a"] + 0.03


def test_one_lucky_row_opens_nothing():
    labels = predicted = np.array(["a"])
    fitted = fit_thresholds(Validation(labels, predicted, np.array([0.5])), target_precision=0.9, abstain=0.2)
    assert (1 + PRIOR_ROWS * 0.5) / (1 + PRIOR_ROWS) < 0.9
    assert (fitted.per_class["a"], fitted.accept) == (NEVER, NEVER)
    assert fitted.abstain == 0.2


def test_rows_of_one_confidence_are_accepted_together():
    labels, predicted = np.array(["a"] * 50 + ["x"] * 50), np.array(["a"] * 100)
    fitted = fit_thresholds(Validation(labels, predicted, np.full(100, 0.9)), target_precision=0.9, abstain=0)
    assert fitted.per_class["a"] == NEVER, "the first fifty are right, and nothing tells them from the others"


def test_the_curve_tells_share_and_precision():
    labels, predicted, scores = draw(3000, 3)
    curve = acceptance_curve(Validation(labels, predicted, scores))
    at = len(curve.confidence) // 2
    accepted = scores >= curve.confidence[at]
    assert curve.share[at] == pytest.approx(accepted.mean())
    assert curve.precision[at] == pytest.approx((labels == predicted)[accepted].mean())
    assert (curve.low <= curve.precision).all()
    assert (curve.precision <= curve.high).all()
    assert (np.diff(curve.share) <= 0).all()
