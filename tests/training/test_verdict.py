"""What is said of a fit's curves, with the numbers in it."""

import numpy as np
import pytest

from retailray.models.intervals import make_intervals
from retailray.training.numbers import TrueValues
from retailray.training.verdict import verdict


def history(train_loss, validation_loss, train_top1, validation_top1):
    columns = {
        "train_loss": train_loss,
        "validation_loss": validation_loss,
        "train_top1": train_top1,
        "validation_top1": validation_top1,
    }
    size = len(validation_loss)
    facts = {"validation_rows": 40, "trainable": "all", "phase": 1}
    return [{"epoch": at + 1} | facts | {name: values[at] for name, values in columns.items()} for at in range(size)]


def line(first, last, count=10):
    return np.linspace(first, last, count).tolist()


VALLEY = [*line(1.5, 0.6, 6), *line(0.65, 1.0, 9)]


@pytest.mark.parametrize(
    ("name", "losses", "validation", "accuracies", "words"),
    [
        (
            "over-fitting",
            line(1.5, 0.05, 15),
            VALLEY,
            (1.0, 0.8),
            "9 epochs later it is 1.000 (early stopping by train.metric loss with train.patience 3 ends after epoch 9)",
        ),
        (
            "still improving",
            line(1.5, 0.5),
            line(1.5, 0.6),
            (0.8, 0.78),
            "More epochs would help: at this slope about 32 in all",
        ),
        ("under-fitting", line(1.5, 1.3), [1.4] * 10, (0.35, 0.34), "does not fall at the end (1.400)"),
        ("good fit", line(1.5, 0.1), [*line(1.0, 0.3, 8), 0.3, 0.3], (0.97, 0.9), "lowest in epoch 8 (0.300)"),
        # and one that is next to nothing and halves has not much to gain
        ("good fit", line(1.5, 0.1), [*line(1.0, 0.02, 8), 0.01, 0.005], (0.97, 1.0), "lowest in epoch 10 (0.005)"),
        # a loss that is next to nothing doubles, and nothing is the worse for it
        ("good fit", line(1.5, 0.1), [*line(1.0, 0.02, 8), 0.03, 0.04], (0.97, 1.0), "lowest in epoch 8 (0.020)"),
        ("diverged", line(1.5, 0.1), [1.0, 1.0, *[float("nan")] * 8], (0.5, 0.5), "from epoch 3 on"),
    ],
)
def test_what_curves_say(name, losses, validation, accuracies, words):
    size = len(validation)
    train_top1, validation_top1 = (line(0.2, top, size) for top in accuracies)
    found = verdict(history(losses, validation, train_top1, validation_top1), num_labels=5)
    assert found.name == name
    assert words in found.text
    assert found.gap == pytest.approx(accuracies[0] - accuracies[1])


def test_one_epoch_is_enough_for_a_word():
    assert verdict(history([1.0], [1.0], [0.9], [0.9]), num_labels=2).name == "good fit"


def test_chance_is_not_learning():
    """Of two labels half is chance: 0.6 is next to nothing learned, and of a hundred it is much."""
    flat = history([0.7] * 5, [0.69] * 5, [0.6] * 5, [0.6] * 5)
    assert verdict(flat, num_labels=2).name == "under-fitting"
    learned = history([0.7] * 5, [0.69] * 5, [0.75] * 5, [0.6] * 5)
    assert verdict(learned, num_labels=100).name == "good fit"


def test_advice_is_about_what_can_be_changed():
    """Kind of fault: 'train more blocks' where all of them are trained."""
    flat = history([1.4] * 5, [1.4] * 5, [0.3] * 5, [0.3] * 5)
    assert "Train longer or at higher rates" in verdict(flat, num_labels=5).text
    assert "Train more blocks" in verdict([row | {"trainable": "head"} for row in flat], num_labels=5).text


def test_training_rows_that_are_mixed_say_little_of_what_is_learned():
    """Kind of fault: with mixup a model that is right on 95 of 100 validation rows is called under-fitting."""
    assert verdict(history([1.0] * 5, [0.3] * 5, [0.55] * 5, [0.95] * 5), num_labels=5).name == "good fit"


def test_one_epoch_has_no_trend():
    assert "fall" not in verdict(history([1.4], [1.4], [0.3], [0.3]), num_labels=5).text


@pytest.mark.parametrize("first", [6, 12, 20])
def test_advice_follows_the_slope(first):
    """A loss of 0.4 + 5 / epoch falls by less than 0.01 an epoch from epoch 23 on, wherever it was cut off."""
    losses = [0.4 + 5 / epoch for epoch in range(1, first + 1)]
    found = verdict(history(losses, losses, line(0.2, 0.8, first), line(0.2, 0.8, first)), num_labels=5)
    assert found.name == "still improving"
    advised = int(found.text.split("about ")[1].split()[0])
    assert advised == pytest.approx(23, abs=2)


def numbers(train_mae, validation_mae, validation_loss):
    facts = {"validation_rows": 40, "trainable": "all", "phase": 1, "train_loss": 1.0}
    measures = zip(train_mae, validation_mae, validation_loss, strict=True)
    return [
        {"epoch": at, **facts, "train_mae": one, "validation_mae": two, "validation_loss": loss}
        for at, (one, two, loss) in enumerate(measures, 1)
    ]


KNOWN = TrueValues(make_intervals(np.arange(40.0)), np.arange(40), np.arange(40.0), usual=20.0, usual_error=10.0)


@pytest.mark.parametrize(
    ("name", "train", "validation", "loss"),
    [
        ("still improving", line(8, 1), line(9, 3), [*line(2, 1, 4), *line(1.1, 3, 6)]),  # the loss alone gets worse
        ("over-fitting", line(8, 1), [*line(9, 4, 5), *line(4.2, 6, 5)], line(2, 1)),
        ("good fit", [*line(9, 8, 5), *[8.0] * 5], [*line(9.5, 8.5, 5), *[8.5] * 5], line(2, 1.9)),  # noise remains
        ("under-fitting", [9.9] * 10, [9.95] * 10, [2.0] * 10),
        ("diverged", line(8, 1), line(9, 3), [1.0, np.nan, *line(1, 1, 8)]),
    ],
)
def test_numbers_are_judged_by_their_errors(name, train, validation, loss):
    """Kind of fault: the median gets better while probabilities around it get worse, and training is stopped."""
    found = verdict(numbers(train, validation, loss), num_labels=40, known=KNOWN)
    assert found.name == name
    assert ("train.metric loss" in found.text, "10 off" in found.text) == (False, name != "diverged")
