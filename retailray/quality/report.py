"""The report of a catalog check: advice, distributions, duplicates and samples as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retailray.config import CatalogSection, CheckConfig
from retailray.quality.findings import Result
from retailray.reports import plots
from retailray.reports.page import error_summary, picture_facts, render, thumbnails
from retailray.runs import RunDirectory

MAX_SHEET_LABELS = 60  # a page that a browser opens at once; some 2 MB of thumbnails
MAX_GROUP_PICTURES = 3
MAX_SUSPICIOUS, MAX_MOVES = 24, 12  # of the most suspicious labels: pictures, kinds


def write_check_report(
    run: RunDirectory,
    config: CheckConfig,
    scan: pd.DataFrame,
    report: Mapping[str, Any],
    results: Sequence[Result],
    ranked: pd.DataFrame | None = None,
) -> None:
    """Write ``report.html`` into the run directory. ``ranked``: labels, the most suspicious first."""
    ok = scan[scan.error_code == ""]
    sizes = None
    if len(ok):
        sizes = plots.size_distributions(ok.width.to_numpy(float), ok.height.to_numpy(float))
    sheet = _sample_sheet(ok, config.check.samples, config.catalog)
    page = render(
        "check.html.j2",
        title="Catalog check",
        subtitle=config.catalog.uri,
        run_id=run.run_id,
        report=report,
        errors=error_summary(report["errors_by_code"], _examples(scan)),
        sizes=sizes,
        labels_plot=plots.label_bars(report["labels"], "rows") if report["labels"] else None,
        groups=_groups(results, scan, config.catalog),
        label_errors=_label_errors(ranked, config.catalog),
        sheet=sheet,
        sheet_cut=len(sheet) < ok.label.nunique(),
    )
    run.write("report.html", page)


def _examples(scan: pd.DataFrame) -> dict[str, list[dict[str, str]]]:
    failed = scan[scan.error_code != ""].drop_duplicates("error_code")
    return {row.error_code: [{"id": row.id, "message": row.message}] for row in failed.itertuples()}


def _groups(
    results: Sequence[Result], scan: pd.DataFrame, section: CatalogSection
) -> list[tuple[str, list[dict[str, object]]]]:
    groups = []
    for result in results:
        if result.name not in ("label_conflicts", "leakage", "exact_duplicates", "near_duplicates"):
            continue
        for rows in result.examples:
            members = scan.iloc[rows[:MAX_GROUP_PICTURES]]
            more = f", {len(rows)} pictures" if len(rows) > MAX_GROUP_PICTURES else ""
            captions = [f"{row.label} · {row.split} · {row.id}" for row in members.itertuples()]
            groups.append((result.name.replace("_", " ") + more, _pictures(members, captions, section)))
    return groups


def _label_errors(ranked: pd.DataFrame | None, section: CatalogSection) -> dict[str, Any] | None:
    if ranked is None:
        return None
    suspicious, unjudged = ranked[ranked.suspicious], int(ranked.score.isna().sum())
    shown = suspicious.head(MAX_SUSPICIOUS)
    captions = [f"{row.label} → {row.suggested} {row.suggested_score:.2f} · {row.id}" for row in shown.itertuples()]
    moves = suspicious.groupby(["label", "suggested"]).size().sort_values(ascending=False).head(MAX_MOVES)
    return {
        "count": len(suspicious),
        "rows": len(ranked),
        "unjudged": unjudged,
        "pictures": _pictures(shown, captions, section),
        "moves": [{"label": label, "suggested": other, "rows": int(rows)} for (label, other), rows in moves.items()],
    }


def _sample_sheet(
    ok: pd.DataFrame, per_label: int, section: CatalogSection
) -> list[tuple[str, list[dict[str, object]]]]:
    labels = sorted(ok.label.unique())
    if len(labels) > MAX_SHEET_LABELS:
        labels = [labels[index] for index in np.linspace(0, len(labels) - 1, MAX_SHEET_LABELS).astype(int)]
    sheet = []
    for label in labels if per_label else []:
        members = ok[ok.label == label]
        members = members.sample(min(per_label, len(members)), random_state=0)
        sheet.append((label, _pictures(members, members.id.tolist(), section, len(labels) * per_label)))
    return sheet


def _pictures(
    members: pd.DataFrame, captions: Sequence[str], section: CatalogSection, of_page: int = 0
) -> list[dict[str, object]]:
    pictures = thumbnails(members.uri.tolist(), section, of_page=of_page)
    return [
        {
            "picture": picture,
            "caption": caption,
            "facts": picture_facts(
                id=row.id,
                label=row.label,
                split=row.split,
                size=f"{row.width:.0f} x {row.height:.0f} px",
                address=row.uri,
            ),
        }
        for picture, caption, row in zip(pictures, captions, members.itertuples(), strict=True)
    ]
