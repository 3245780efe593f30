"""The report of a comparison: who is better, how sure, and what would change."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from retailray.config import CatalogSection
from retailray.reports.page import render, thumbnails
from retailray.runs import RunDirectory

NUM_PICTURES, NUM_CHANGES, NUM_CLASSES = 24, 20, 20


def write_comparison_report(
    run: RunDirectory,
    catalog: CatalogSection,
    names: Mapping[str, str],
    found: Mapping[str, Any],
    changed: pd.DataFrame,
) -> None:
    """Write ``report.html``. ``changed``: a row for each product whose label would change."""
    shown = changed.sort_values("challenger_score", ascending=False, kind="stable").head(NUM_PICTURES)
    pictures = thumbnails(shown.uri.tolist(), catalog)
    page = render(
        "comparison.html.j2",
        title="Champion and challenger",
        subtitle=catalog.uri,
        run_id=run.run_id,
        names=names,
        found=found,
        changes=found["changes"][:NUM_CHANGES],
        classes=[row for row in found.get("per_class", []) if row["difference"]][:NUM_CLASSES],
        pictures=[row | {"picture": data} for row, data in zip(shown.to_dict("records"), pictures, strict=True)],
    )
    run.write("report.html", page)
