"""The demo's report: what was planted, what was found, what transfer was worth, where everything lies."""

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from retailray import storage
from retailray.config import CatalogSection
from retailray.reports.page import render, thumbnails
from retailray.runs import RunDirectory


def write_demo_report(
    run: RunDirectory,
    planted: Mapping[str, Any],
    found: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    suspects: pd.DataFrame,
    links: Mapping[str, str],
    *,
    catalog: CatalogSection,
) -> None:
    """Write ``report.html`` into the run directory. ``results``: metrics by where the weights came from."""
    failed = found["num_rows"] - found["num_images_ok"]
    rows = [
        ("broken or missing files", planted["num_broken"], failed),
        ("exact copies", planted["num_copies"], found["num_exact_duplicates"]),
        ("images without a row", planted["num_orphans"], found["num_orphans"]),
        ("wrong labels (the model disagrees)", planted["num_wrong_labels"], suspects.attrs["found_in_all"]),
    ]
    pictures = thumbnails([storage.join(storage.parent(catalog.uri), image) for image in suspects.image], catalog)
    doubted = [
        {"picture": picture, "caption": f"label {row.label} · model {row.pred_label} {row.pred_score:.2f} · "
         f"{'label is wrong' if row.is_wrong else 'label is right'}"}
        for picture, row in zip(pictures, suspects.itertuples(), strict=True)
    ]  # fmt: skip
    page = render(
        "demo.html.j2",
        title="retailray demo",
        subtitle="A made-up catalog: checked, learned, measured, scored, published",
        run_id=run.run_id,
        found=found,
        planted=rows,
        results=results,
        counts=summary["counts"],
        decisions=summary["decisions"],
        doubted=doubted,
        links={name: _relative(link, run.address) for name, link in links.items()},
    )
    run.write("report.html", page)


def _relative(link: str, base: str) -> str:
    return link if storage.is_uri(link) else os.path.relpath(link, base)
