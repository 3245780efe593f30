"""The report of an evaluation: measures, calibration, and pictures of what is confused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from retailray.config import CatalogSection, EvaluateConfig
from retailray.models.meta import BundleMeta
from retailray.reports import plots
from retailray.reports.page import data_uri, error_summary, render, thumbnails
from retailray.runs import RunDirectory

NUM_CLASSES = 500  # of the table by class
PICTURES_A_PAIR = 3


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
    run.write("confusion.png", matrix)
    correct = (used.label == used.pred_label).to_numpy(float)
    page = render(
        "evaluation.html.j2",
        title=f"Evaluation of {meta.name}",
        subtitle=f"{config.catalog.uri} · {config.model.uri}",
        run_id=run.run_id,
        metrics=metrics,
        pairs=[_pair(used, metrics, *pair, section=config.catalog) for pair in pairs],
        confusion=data_uri(matrix, "image/png"),
        temperature=meta.temperature,
        reliability=data_uri(plots.reliability(_confidences(used, meta), correct), "image/png"),
        per_class=sorted(metrics["per_class"].items(), key=lambda item: (item[1]["f1"], item[0]))[:NUM_CLASSES],
        num_labels=len(confusion[1]),
        num_shown=min(len(confusion[1]), plots.MAX_CONFUSION),
        num_classes=len(metrics["per_class"]),
        errors=error_summary(metrics["errors_by_code"], {}),
    )
    run.write("report.html", page)


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
        {"picture": picture, "caption": f"{row.pred_score:.2f} · {row.id}"}
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
