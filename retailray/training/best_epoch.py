"""Which epoch's weights are kept."""

import math
from collections.abc import Iterable
from typing import Any

WORST = -1e9  # of what diverged: below all that can be measured, and still a number for searchers


def score_of(epoch: dict[str, Any], metric: str) -> float:
    """More is better. What diverged is never the best, whatever its measure says."""
    value = float(epoch[f"validation_{metric}"]) * (-1 if metric == "loss" else 1)
    return value if math.isfinite(epoch["validation_loss"]) else WORST


def best_epoch(history: Iterable[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The epoch to keep, as can be said after each one without looking back; None where all diverged.

    A few hundred rows measure top-1 or F1 no better than to one standard error, ``sqrt(s (1 - s) / rows)`` of the best
    score ``s`` so far. Epochs within it are as good as the best one; of them the lower loss decides, which says more
    about each row than right or wrong.
    """
    kept: dict[str, Any] | None = None
    top = WORST
    for epoch in history:
        score = score_of(epoch, metric)
        if score == WORST:
            continue
        top = max(top, score)
        enough = top - _standard_error(top, epoch["validation_rows"], metric)
        if score < enough:
            continue
        if not kept or score_of(kept, metric) < enough or epoch["validation_loss"] < kept["validation_loss"]:
            kept = epoch
    return kept


def _standard_error(score: float, rows: int, metric: str) -> float:
    return math.sqrt(score * (1 - score) / rows) if rows and metric != "loss" else 0.0
