"""The page on which a person goes through the queue: pictures and all in one file, no server."""

from collections.abc import Mapping, Sequence
from typing import Any

from retailray.config import CatalogSection
from retailray.reports.page import pictures, render
from retailray.runs import RunDirectory

PICTURE_PX = 320


def write_review_page(
    run: RunDirectory,
    queue: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    model: str,
    section: CatalogSection,
) -> None:
    """Write ``review/index.html``; ``queue``: :func:`retailray.scoring.review.make_queue`."""
    shown = pictures([row["image"] for row in queue], section, side=PICTURE_PX)
    items = [dict(row, picture=picture) for row, picture in zip(queue, shown, strict=True)]
    run.write(
        "review/index.html",
        render("review.html.j2", items=items, labels=list(labels), run_id=run.run_id, model=model),
    )
