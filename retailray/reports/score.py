"""The report of a scoring run: counts, confidence, doubtful pictures, errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retailray.config import ScoreConfig
from retailray.models.meta import BundleMeta, Thresholds
from retailray.models.thresholds import NEVER, AcceptanceCurve
from retailray.reports import plots
from retailray.reports.page import data_uri, render, thumbnails
from retailray.reports.training import error_summary
from retailray.runs import RunDirectory

NUM_DOUBTFUL = 24


def write_score_report(
    run: RunDirectory,
    meta: BundleMeta,
    found: Mapping[str, Any],
    counts: Mapping[str, int],
    config: ScoreConfig,
    *,
    thresholds: Thresholds,
    curve: AcceptanceCurve | None,
    drift: Sequence[Any],
    changed: Mapping[str, Any],
    times: Mapping[str, float],
) -> None:
    """Write ``report.html`` into the run directory; ``found``: :func:`retailray.scoring.publishing.summarize`."""
    page = render(
        "score.html.j2",
        title="Scored catalog",
        subtitle=config.catalog.uri,
        run_id=run.run_id,
        counts=counts,
        decisions=found["decisions"],
        agreement=found["label_agreement"],
        thresholds=thresholds,
        target=config.score.target_precision,
        acceptance=data_uri(plots.acceptance(curve, config.score.target_precision), "image/png") if curve else None,
        acceptable=_acceptable(curve),
        meta=meta,
        model_uri=config.model.uri,
        times=times,
        drift=drift,
        changed=changed,
        changed_pictures=_with_pictures(changed["examples"]),
        histogram=data_uri(plots.score_histogram(np.array(found["histogram"]), _lines(thresholds)), "image/png"),
        labels=data_uri(plots.label_bars(found["labels"], "predicted labels"), "image/png"),
        doubtful=_with_pictures(found["review"][:NUM_DOUBTFUL]),
        errors=error_summary(found["errors_by_code"], found["examples"]),
    )
    run.write("report.html", page)


def _lines(thresholds: Thresholds) -> dict[str, float]:
    """Where a histogram of confidences gets a line."""
    lines = {"abstain": thresholds.abstain}
    return lines | ({"accept": thresholds.accept} if thresholds.accept < NEVER and not thresholds.per_class else {})


def _acceptable(curve: AcceptanceCurve | None) -> list[dict[str, float]]:
    """The largest share that could be accepted at some precisions, where the validation rows show it."""
    rows: list[dict[str, float]] = []
    for wanted in (0.9, 0.95, 0.98, 0.99) if curve else ():
        assert curve is not None
        good = np.flatnonzero(curve.precision >= wanted)
        if len(good):
            at = good[curve.share[good].argmax()]
            names = ("confidence", "share", "precision", "low", "high")
            rows.append({"wanted": wanted, **{name: float(getattr(curve, name)[at]) for name in names}})
    return rows


def _with_pictures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    pictures = thumbnails([row["uri"] for row in rows])
    return [row | {"picture": picture} for row, picture in zip(rows, pictures, strict=True)]
