"""The report of a comparison: who is better, how sure, and what would change."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from retailray.config import CatalogSection
from retailray.reports.page import picture_facts, render, thumbnails
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
        answers=_answers(found),
        changes=found["changes"][:NUM_CHANGES],
        classes=[row for row in found.get("per_class", []) if row["difference"]][:NUM_CLASSES],
        pictures=[_with_facts(row, data) for row, data in zip(shown.to_dict("records"), pictures, strict=True)],
    )
    run.write("report.html", page)


def _answers(found: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Who is better, and what would change: whether each is good, and in a sentence."""
    changed = f"{found['changed']:,} of {found['both']:,} rows would get another label."
    if not found.get("top1"):
        return [(False, "No row has a label, so nobody knows who is right."), (not found["changed"], changed)]
    top1 = found["top1"]
    low, high = top1["interval"]
    told = f"by {100 * top1['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        first = (True, f"The challenger is better, {told}.")
    elif high < 0:
        first = (False, f"The challenger is worse, {told}.")
    else:
        first = (False, f"The two cannot be told apart on these rows: they differ {told}.")
    return [first, (not found["changed"], changed)]


def _with_facts(row: dict[str, Any], picture: str | None) -> dict[str, object]:
    told = picture_facts(
        id=row["id"],
        label=row["label"],
        champion=row["champion_label"],
        challenger=row["challenger_label"],
        confidence=row["challenger_score"],
        address=row["uri"],
    )
    return row | {"picture": picture, "facts": told}
