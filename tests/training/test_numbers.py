"""What is learned of a number, by sums that are written out."""

import numpy as np
import pytest
import torch

from retailray.models.intervals import Intervals, make_intervals
from retailray.training.numbers import TrueValues


def measure_of(intervals, count=5):
    known = TrueValues(intervals, np.arange(count), np.zeros(count), usual=0.0, usual_error=1.0)
    return known.on(torch.device("cpu"))


def test_the_ranked_score_is_the_sum_over_thresholds():
    """Kind of fault: two probabilities that are equally wrong by cross-entropy cost the same, however far off."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=generator)
    wanted = torch.eye(6)[[0, 2, 5, 3]]
    found = measure_of(make_intervals(np.arange(6.0).repeat(9))).ranked_score(logits, wanted)
    for row in range(4):
        shares, total = logits[row].softmax(0), 0.0
        for threshold in range(5):
            total += float(shares[: threshold + 1].sum() - wanted[row, : threshold + 1].sum()) ** 2
        assert found[row].item() == pytest.approx(total, abs=1e-6)
    near, far = torch.tensor([[9.0, 0, 0, 0, 0, 0]]), torch.tensor([[0.0, 0, 0, 0, 0, 9]])
    measure = measure_of(make_intervals(np.arange(6.0).repeat(9)))
    second = torch.eye(6)[[1]]
    assert measure.ranked_score(near, second) < 0.5 * measure.ranked_score(far, second)


def test_neighbours_of_a_range_are_nearly_right_and_those_of_a_single_value_are_not():
    near = measure_of(Intervals(lows=(0, 10, 20, 30), highs=(5, 10, 25, 35))).near
    assert near.sum(1).tolist() == pytest.approx([1] * 4)
    assert near[1].tolist() == [0, 1, 0, 0], "10 is a value of its own"
    many = make_intervals(np.random.default_rng(0).normal(size=1_000))
    near = measure_of(many).near
    assert (near.argmax(1) == torch.arange(len(many))).all()
    assert near[30, 31] > 0.3 * near[30, 30] > 100 * near[30, 40]
