"""The report of an evaluation: measures, calibration, and pictures of what is confused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from retailray.config import CatalogSection, EvaluateConfig
from retailray.models.meta import BundleMeta
from retailray.reports import plots
from retailray.reports.page import error_summary, picture_facts, render, thumbnails
from retailray.runs import RunDirectory

NUM_CLASSES = 500  # of the table by class
PICTURES_A_PAIR = 3
WEAK = 0.5  # F1 of a label that is worth a word
MISCALIBRATED = 0.1  # expected calibration error


def write_evaluation_report(
    run: RunDirectory,
    config: EvaluateConfig,
    meta: BundleMeta,
    used: pd.DataFrame,
    metrics: Mapping[str, Any],
    confusion: tuple[scipy.sparse.csr_array, Sequence[str]],
    pairs: Sequence[tuple[str, str, int]],
) -> None:
    """Write ``confusion.png`` and ``report.html`` into the run directory. ``used`` has one row an evaluated image."""
    matrix = plots.confusion(*_most_confused(*confusion))
    run.write("confusion.png", matrix.png())
    correct = (used.label == used.pred_label).to_numpy(float)
    page = render(
        "evaluation.html.j2",
        title=f"Evaluation of {meta.name}",
        subtitle=f"{config.catalog.uri} · {config.model.uri}",
        run_id=run.run_id,
        metrics=metrics,
        answers=_answers(metrics, pairs),
        pairs=[_pair(used, metrics, *pair, section=config.catalog) for pair in pairs],
        confusion=matrix,
        temperature=meta.temperature,
        reliability=plots.reliability(_confidences(used, meta), correct),
        per_class=sorted(metrics["per_class"].items(), key=lambda item: (item[1]["f1"], item[0]))[:NUM_CLASSES],
        num_labels=len(confusion[1]),
        num_shown=min(len(confusion[1]), plots.MAX_CONFUSION),
        num_classes=len(metrics["per_class"]),
        errors=error_summary(metrics["errors_by_code"], {}),
    )
    run.write("report.html", page)


def _answers(metrics: Mapping[str, Any], pairs: Sequence[tuple[str, str, int]]) -> list[tuple[bool, str]]:
    """Is it good, and what is there to do: whether each is good, and in a sentence."""
    low, high = metrics["intervals"]["top1"] if metrics["intervals"] else (metrics["top1"],) * 2
    told = f"Top-1 is {metrics['top1']:.1%} ({low:.1%} to {high:.1%}) on {metrics['num_rows']:,} images."
    usual = max(row["support"] for row in metrics["per_class"].values()) / max(1, metrics["num_rows"])
    answers = [(low > usual, told)]
    if low <= usual:
        answers.append((False, f"Always saying the most frequent label gives {usual:.1%}, which is as good."))
    weak = sorted((row["f1"], name) for name, row in metrics["per_class"].items() if row["f1"] < WEAK)
    if weak:
        names = ", ".join(name for _, name in weak[:3]) + (f" and {len(weak) - 3} more" if len(weak) > 3 else "")
        answers.append((False, f"F1 is below {WEAK:.0%} for {names}: more pictures of these labels would help."))
    if pairs:
        truth, guess, count = pairs[0]
        answers.append((False, f"The most frequent mistake is {truth} taken for {guess} ({count} times)."))
    if metrics["ece"] > MISCALIBRATED:
        answers.append((False, f"Confidences are {metrics['ece']:.1%} off on average: set thresholds with care."))
    return answers


def _most_confused(matrix: scipy.sparse.csr_array, labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The counts of those labels that are confused most, as many as a plot shows; all where they are few."""
    if len(labels) <= plots.MAX_CONFUSION:
        return matrix.toarray(), list(labels)
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    chosen = np.sort(np.argsort(-wrong, kind="stable")[: plots.MAX_CONFUSION])
    return matrix[chosen][:, chosen].toarray(), [labels[at] for at in chosen]


def _pair(
    used: pd.DataFrame, metrics: Mapping[str, Any], truth: str, guess: str, count: int, *, section: CatalogSection
) -> dict[str, object]:
    """The surest mistakes of one kind."""
    mistakes = used[(used.label == truth) & (used.pred_label == guess)]
    members = mistakes.sort_values("pred_score", ascending=False).head(PICTURES_A_PAIR)
    pictures = thumbnails(members.uri.tolist(), section)
    rows = [
        {
            "picture": picture,
            "caption": f"{row.pred_score:.2f} · {row.id}",
            "facts": picture_facts(id=row.id, label=truth, predicted=guess, confidence=row.pred_score, address=row.uri),
        }
        for picture, row in zip(pictures, members.itertuples(), strict=True)
    ]
    return {
        "truth": truth,
        "guess": guess,
        "count": count,
        "support": metrics["per_class"][truth]["support"],
        "members": rows,
    }


def _confidences(used: pd.DataFrame, meta: BundleMeta) -> dict[str, np.ndarray]:
    after = {f"calibrated (T = {meta.temperature:.2f})": used.pred_score.to_numpy(float)}
    if meta.temperature == 1.0:
        return after
    return {"before": used.uncalibrated_score.to_numpy(float)} | after
