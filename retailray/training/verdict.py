"""What the epochs of a fit say, in words: over-fitting, under-fitting, or neither."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from retailray.data.numeric_labels import spelled
from retailray.training.best_epoch import Epoch
from retailray.training.numbers import TrueValues

LAST = 3  # epochs at the end over which a slope is taken
RISEN = 0.05  # of the lowest validation loss, and in itself: it has risen
FALLING = 0.01  # in an epoch, of the loss and in itself: it still falls
FARTHEST = 4  # times the epochs that were seen
PATIENCE = 3  # epochs without a better one, for advice
POOR = 0.7  # of the way from chance to certainty: what is less is not learned
POOR_OF_NUMBERS = 0.1  # of the error of always saying the median: pictures may show no more than a part of a number


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``name``: over-fitting, under-fitting, still improving, diverged or good fit. ``text``: with the numbers.

    ``gap``: top-1 of training less that of validation, in the last epoch; of numbers the mean absolute error of
    validation less that of training. ``slope``: of the validation loss in an epoch
    at the end. ``lowest``: the epoch of the lowest validation loss.
    """

    name: str
    text: str
    gap: float
    slope: float
    lowest: int


def _stopped(history: Sequence[Epoch], lowest: int, metric: str) -> str:
    """What early stopping by a measure would have done."""
    end = lowest + PATIENCE
    if len({row["phase"] for row in history}) > 1 or end >= len(history):
        return ""
    return f" (early stopping by train.metric {metric} with train.patience {PATIENCE} ends after epoch {end})"


def _epochs_until_flat(epochs: int, slope: float, flat: float) -> int:
    """After how many epochs a loss falls by ``flat`` an epoch, that falls by ``slope`` after ``epochs``.

    Losses near their end fall about as ``a + b / epoch``, so their slope as ``b / epoch²``. Not beyond
    :data:`FARTHEST` times as many: no curve says so much of what comes after it.
    """
    return min(math.ceil(epochs * math.sqrt(slope / flat)), FARTHEST * epochs)


def _diverged(history: Sequence[Epoch], losses: np.ndarray, gap: float) -> Verdict:
    first = history[int(np.flatnonzero(~np.isfinite(losses))[0])]["epoch"]
    return Verdict("diverged", f"the loss is no number from epoch {first} on; lower the rates", gap, np.nan, 0)


def _told(last: Epoch, known: TrueValues | None) -> str:
    rows = f"({last['validation_rows']} rows) at the end"
    if known:
        return (
            f"the mean absolute error is {spelled(last['train_mae'])} in training and "
            f"{spelled(last['validation_mae'])} in validation {rows}; always saying {spelled(known.usual)}, the "
            f"median, would be {spelled(known.usual_error)} off"
        )
    return f"top-1 is {last['train_top1']:.3f} in training and {last['validation_top1']:.3f} in validation {rows}"


def _learned(last: Epoch, num_labels: int, known: TrueValues | None) -> float:
    """How much of the way from chance to certainty, by training or validation rows, whichever is more.

    Training rows may be mixed and augmented beyond recognition, and validation rows are not.
    """
    if known:
        error = min(last["train_mae"], last["validation_mae"])
        return 1 - error / known.usual_error if known.usual_error else 1.0
    return (max(last["train_top1"], last["validation_top1"]) - 1 / num_labels) / (1 - 1 / num_labels)


def _curve(history: Sequence[Epoch], known: TrueValues | None) -> tuple[str, np.ndarray, np.ndarray]:
    """What is judged: its name, and its values on validation and training rows, float ``(E,)``.

    Of numbers errors, as shares of that of always saying the median: what is published is the median, which can get
    better while the probabilities around it get worse.
    """
    if known:
        usual = known.usual_error or 1.0
        names, scale = ("validation_mae", "train_mae"), 1 / usual
        what = "the validation error, as a share of that of always saying the median,"
    else:
        names, scale, what = ("validation_loss", "train_loss"), 1.0, "validation loss"
    rows = [(row[names[0]], row[names[1]]) for row in history]  # type: ignore[literal-required]
    of_validation, of_training = scale * np.array(rows, float).T
    diverged = ~np.isfinite([row["validation_loss"] for row in history])
    return what, np.where(diverged, np.nan, of_validation), of_training


def verdict(history: Sequence[Epoch], *, num_labels: int, known: TrueValues | None = None) -> Verdict:
    """Judge a fit by its losses and accuracies; of numbers (``known``) by its absolute errors.

    Over-fitting: the validation loss has risen since its lowest by over :data:`RISEN`, while the training loss fell.
    Under-fitting: the training accuracy stays below :data:`POOR` of what chance leaves, and the loss falls no more.
    """
    what, losses, of_training = _curve(history, known)
    last = history[-1]
    gap = last["validation_mae"] - last["train_mae"] if known else last["train_top1"] - last["validation_top1"]
    if not np.isfinite(losses).all():
        return _diverged(history, losses, gap)
    at = int(losses.argmin())
    lowest, since = history[at]["epoch"], len(history) - 1 - at
    slope = float(np.polyfit(range(len(losses[-LAST:])), losses[-LAST:], 1)[0]) if len(history) > 1 else 0.0
    told, learned = _told(last, known), _learned(last, num_labels, known)
    falls = slope < -FALLING * max(1.0, losses[-1])
    risen = losses[-1] - losses[at] > RISEN * max(1.0, losses[at])
    if risen and of_training[-1] < of_training[at]:
        name = "over-fitting"
        stopped = _stopped(history, lowest, "mae" if known else "loss")
        text = (
            f"{what} was lowest in epoch {lowest} ({losses[at]:.3f}), and {since} epochs later it is "
            f"{losses[-1]:.3f}{stopped}; {told}. More pictures, more augmentation or fewer trained blocks would help"
        )
    elif falls:
        name = "still improving"
        epochs = _epochs_until_flat(len(history), -slope, FALLING * max(1.0, losses[-1]))
        text = (
            f"{what} still falls, by {-slope:.3f} an epoch; {told}. More epochs would help: at this slope "
            f"about {epochs} in all"
        )
    elif learned < (POOR_OF_NUMBERS if known else POOR):
        name = "under-fitting"
        more = "Train longer or at higher rates" if last["trainable"] == "all" else "Train more blocks, or longer"
        trend = "does not fall at the end" if len(history) > 1 else "after one epoch is what it is"
        text = f"{what} {trend} ({losses[-1]:.3f}); {told}. {more}"
    else:
        name, text = "good fit", f"{what} was lowest in epoch {lowest} ({losses[at]:.3f}); {told}"
    return Verdict(name, text, float(gap), slope, lowest)
