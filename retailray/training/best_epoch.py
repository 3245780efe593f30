"""Which epoch's weights are kept, and for how long nothing was better."""

import math
from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict

LESS_IS_BETTER = ("loss", "mae")
WORST = -1e9  # of what diverged: below all that can be measured, and still a number for searchers


class TrainMeasures(TypedDict):
    """Of the training rows of an epoch, as they were seen: a mean, a share (of numbers the mean absolute error) and a
    count.

    ``lr``: the highest learning rate. ``grad_norm``: of all gradients, the mean over steps.
    ``data_wait_seconds``: in which this worker waited for batches.
    """

    train_loss: float
    train_top1: NotRequired[float]
    train_mae: NotRequired[float]
    train_rows: int
    lr: float
    grad_norm: float
    data_wait_seconds: float


class ValidationMeasures(TypedDict):
    """Of the validation rows after an epoch: top-1 and macro F1 of classes; of numbers the mean absolute error and the
    sum of absolute errors by the sum of absolute values (WAPE)."""

    validation_loss: float
    validation_top1: NotRequired[float]
    validation_macro_f1: NotRequired[float]
    validation_mae: NotRequired[float]
    validation_wape: NotRequired[float]
    validation_rows: int


class Epoch(TrainMeasures, ValidationMeasures):
    """A row of ``history.csv``. ``seconds``: of training and validation together."""

    epoch: int
    phase: int
    trainable: str
    precision: str
    train_seconds: float
    seconds: float


def measures_of(epoch: Epoch) -> dict[str, object]:
    """Its measures on the validation rows, by their names in ``history.csv``."""
    return {name: epoch[name] for name in ValidationMeasures.__annotations__ if name in epoch}  # type: ignore[literal-required]


def measure_of(epoch: Epoch, metric: str) -> float:
    """One of its measures on the validation rows: ``top1``, ``macro_f1``, ``loss`` or ``mae``, as for
    :class:`TrainSection.metric`."""
    if metric == "mae":
        return epoch["validation_mae"]
    if metric == "loss":
        return epoch["validation_loss"]
    return epoch["validation_macro_f1"] if metric == "macro_f1" else epoch["validation_top1"]


def score_of(epoch: Epoch, metric: str) -> float:
    """More is better. What diverged is never the best, whatever its measure says."""
    value = measure_of(epoch, metric) * (-1 if metric in LESS_IS_BETTER else 1)
    if metric == "mae":  # which may be a number of any size, as values may
        value = -math.log1p(-value)
    return value if math.isfinite(epoch["validation_loss"]) else WORST


def best_epoch(history: Iterable[Epoch], metric: str) -> Epoch | None:
    """The epoch to keep, as can be said after each one without looking back; None where all diverged.

    It is the last one whose score is within one standard error, ``sqrt(s (1 - s) / rows)``, of the best score ``s`` so
    far: a few hundred rows tell top-1 or F1 no better, and of epochs that they cannot tell apart the later one was
    trained longer and at a lower rate. By loss or error it is the best one.
    """
    kept, top = None, WORST
    for epoch in history:
        score = score_of(epoch, metric)
        top = max(top, score)
        if score > WORST and score >= top - _standard_error(top, epoch["validation_rows"], metric):
            kept = epoch
    return kept


def epochs_since_better(history: Sequence[Epoch], metric: str) -> int:
    """Epochs after the one with the best score; of equals that with the lower loss."""
    measures = [(score_of(epoch, metric), -epoch["validation_loss"]) for epoch in history]
    return len(measures) - 1 - measures.index(max(measures)) if measures else 0


def _standard_error(score: float, rows: int, metric: str) -> float:
    return math.sqrt(score * (1 - score) / rows) if rows and metric not in LESS_IS_BETTER else 0.0
