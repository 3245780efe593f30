"""The report of ``shoppers``: segments with their products, who comes again, what is wanted more than offered."""

from typing import Any

import pyarrow as pa

from retailray.config.command_configs import ShoppersConfig
from retailray.reports.page import picture_facts, render, thumbnails
from retailray.retrieval.filters import catalog_of
from retailray.retrieval.vectors import Vectors
from retailray.runs import RunDirectory

MONTHS, CATEGORIES = 12, 10  # of the cohorts; at either end of the list


def write_shoppers_report(
    run: RunDirectory,
    config: ShoppersConfig,
    facts: dict[str, Any],
    tables: dict[str, pa.Table],
    vectors: Vectors | None,
) -> None:
    """Write ``report.html``. ``tables``: ``segments, retention, demand`` as published. ``vectors``: for pictures."""
    segments = tables["segments"].to_pylist()
    pictures = _pictures(segments, vectors)
    for segment in segments:
        segment["pictures"] = [
            {"name": name, "uri": pictures.get(name), "facts": picture_facts(product=name)}
            for name in segment["products"]
        ]
    demand = tables["demand"].to_pylist()
    page = render(
        "shoppers.html.j2",
        title="Shoppers",
        subtitle=config.interactions.uri,
        run_id=run.run_id,
        facts=facts,
        segments=segments,
        with_pictures=bool(pictures),
        cohorts=_cohorts(tables["retention"].to_pylist()),
        months=MONTHS,
        demand=demand if len(demand) <= 2 * CATEGORIES else demand[:CATEGORIES] + demand[-CATEGORIES:],
        answers=_answers(facts),
    )
    run.write("report.html", page)


def _answers(facts: dict[str, Any]) -> list[tuple[bool, str]]:
    if facts["note"]:
        return [(False, facts["note"][0].upper() + facts["note"][1:] + ".")]
    found = [(True, f"{facts['segments']} segments; two draws of the same shoppers agree on them with an adjusted Rand "
              f"index of {facts['stability']:.2f} (1: the same, 0: by chance).")]  # fmt: skip
    if facts["moved"] is not None:
        found.append((True, f"{facts['moved']} shoppers are in another segment than in the run before."))
    return found


def _cohorts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per cohort: its size, and by months since then the share that was active."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        cohort = found.setdefault(row["cohort"], {"cohort": row["cohort"], "shoppers": row["shoppers"], "shares": {}})
        cohort["shares"][row["month"]] = row["active"] / row["shoppers"]
    return list(found.values())[-MONTHS:]


def _pictures(segments: list[dict[str, Any]], vectors: Vectors | None) -> dict[str, str | None]:
    """Thumbnails of the segments' products by name, of runs, whose catalog says what may be read."""
    if vectors is None or vectors.run is None:
        return {}
    wanted = {name for segment in segments for name in segment["products"]}
    at = {name: row for row, name in enumerate(vectors.ids.to_pylist()) if name in wanted}
    uris = vectors.images.take(pa.array(at.values(), pa.int64())).to_pylist()
    return dict(zip(at, thumbnails(uris, catalog_of(vectors.run)), strict=True))
