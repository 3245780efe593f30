"""The report of a scoring run: counts, confidence, doubtful pictures, errors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from retailray.config import ScoreConfig
from retailray.models.meta import BundleMeta
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
    seconds: float,
) -> None:
    """Write ``report.html`` into the run directory; ``found``: :func:`retailray.scoring.publishing.summarize`."""
    doubtful = found["review"][:NUM_DOUBTFUL]
    pictures = thumbnails([row["uri"] for row in doubtful])
    page = render(
        "score.html.j2",
        title="Scored catalog",
        subtitle=config.catalog.uri,
        run_id=run.run_id,
        counts=counts,
        decisions=found["decisions"],
        agreement=found["label_agreement"],
        thresholds=meta.thresholds,
        meta=meta,
        model_uri=config.model.uri,
        seconds=seconds,
        histogram=data_uri(
            plots.score_histogram(np.array(found["histogram"]), meta.thresholds.model_dump()), "image/png"
        ),
        labels=data_uri(plots.label_bars(found["labels"], "predicted labels"), "image/png"),
        doubtful=[row | {"picture": picture} for row, picture in zip(doubtful, pictures, strict=True)],
        errors=error_summary(found["errors_by_code"], found["examples"]),
    )
    run.write("report.html", page)
