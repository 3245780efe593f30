"""Which epoch is kept: what a few hundred validation rows can tell apart, and not what their noise says."""

import itertools
import math

import numpy as np
import pytest

from retailray.training.best_epoch import best_epoch, epochs_since_better
from tests import oracles


def epochs(*measures, rows=149):
    return [
        {"epoch": number, "validation_top1": top1, "validation_loss": loss, "validation_rows": rows}
        for number, (top1, loss) in enumerate(measures, 1)
    ]


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        (epochs((0.70, 1.2), (0.80, 0.9)), 2),  # plainly better
        (epochs((0.866, 0.901), (0.852, 0.860), (0.859, 0.845)), 3),  # a row or two of 149 are noise: the later one
        (epochs((0.866, 0.901), (0.852, 0.860), (0.859, 0.845), rows=100_000), 1),  # and of 100,000 they are not
        (epochs((0.90, 0.5), (0.70, 0.4)), 1),  # a lower loss does not make up for plainly worse
        (epochs((0.85, 0.50), (0.86, 0.60), (0.82, 0.40)), 2),
        (epochs((0.80, 0.50), (math.nan, math.nan)), 1),
        (epochs((1.0, 0.2), (1.0, 0.1), (0.99, 0.1)), 2),
    ],
)
def test_of_epochs_that_rows_cannot_tell_apart_the_last_is_kept(history, kept):
    """Kind of fault: one row of 149 decides for weights of a half-trained model."""
    assert best_epoch(history, "top1")["epoch"] == kept


def test_by_loss_the_lowest_is_kept_and_what_diverged_never():
    assert best_epoch(epochs((0.9, 0.5), (0.8, 0.4), (0.7, math.inf)), "loss")["epoch"] == 2
    assert best_epoch(epochs((0.9, math.nan), (0.8, math.inf)), "top1") is None
    assert best_epoch([], "top1") is None


def test_patience_counts_from_the_best_score_and_not_from_what_is_kept():
    """Else a plateau would never end: each of its epochs is as good as the best one."""
    assert [epochs_since_better(epochs(*[(0.8, 0.5)] * 4)[:end], "top1") for end in range(5)] == [0, 0, 1, 2, 3]
    assert epochs_since_better(epochs((0.8, 0.5), (0.8, 0.4), (0.79, 0.3)), "top1") == 1
    assert epochs_since_better(epochs((0.8, 0.5), (0.8, math.nan)), "loss") == 1


def test_the_kept_epoch_is_the_oracles_whatever_the_history():
    generator = np.random.default_rng(0)
    for _ in range(200):
        history = epochs(*zip(generator.beta(20, 5, 12).round(2), generator.gamma(9, 0.1, 12), strict=True), rows=150)
        assert best_epoch(history, "top1") == oracles.best_epoch(history)


def test_what_is_kept_after_each_epoch_is_the_last_or_what_was_kept_before():
    """Weights of earlier epochs are gone: the choice never goes back to one that was not kept."""
    generator = np.random.default_rng(1)
    for _ in range(200):
        history = epochs(*zip(generator.random(10).round(2), generator.random(10), strict=True), rows=50)
        kept = [best_epoch(history[: end + 1], "top1")["epoch"] for end in range(10)]
        assert all(now in (before, end + 2) for end, (before, now) in enumerate(itertools.pairwise(kept)))
