"""The report of a scoring run: counts, confidence, doubtful pictures, errors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retailray.config import CatalogSection, ScoreConfig
from retailray.models.meta import BundleMeta, Thresholds
from retailray.models.thresholds import NEVER, AcceptanceCurve
from retailray.reports import plots
from retailray.reports.page import error_summary, picture_facts, render, thumbnails
from retailray.runs import RunDirectory
from retailray.scoring.drift import Drift

NUM_QUEUED, NUM_CLASSES = 24, 40
MUCH = 0.25  # population stability index beyond chance


@dataclasses.dataclass(frozen=True)
class Findings:
    """What is seen in the tables of a run. ``labels_before``: rows per label of the previous run."""

    curve: AcceptanceCurve | None
    drift: Sequence[Drift]
    changed: Mapping[str, Any]
    queue: Sequence[dict[str, object]]
    labels_before: Mapping[str, int] | None


def write_score_report(
    run: RunDirectory,
    meta: BundleMeta,
    config: ScoreConfig,
    facts: Mapping[str, Any],
    findings: Findings,
) -> None:
    """Write ``report.html`` into the run directory.

    ``facts``: what ``run.json`` says, and :func:`retailray.scoring.publishing.summarize`.
    """
    # long because a page has many parts
    thresholds, stages = Thresholds(**facts["thresholds"]), facts["stages"]
    curve, changed, queue = findings.curve, findings.changed, findings.queue
    lines, promised = _lines(thresholds), config.score.target_precision
    page = render(
        "score.html.j2",
        title="Scored catalog",
        subtitle=config.catalog.uri,
        run_id=run.run_id,
        answers=_answers(facts, findings),
        counts=facts["counts"],
        decisions=facts["decisions"],
        agreement=facts["label_agreement"],
        thresholds=thresholds,
        target=promised,
        promise=facts["promise"],
        used_for=meta.data.get("validation_rows_used_for"),
        acceptance=plots.acceptance(curve, promised) if curve else None,
        acceptable=_acceptable(curve),
        meta=meta,
        model_uri=config.model.uri,
        times=facts["times"],
        drift=findings.drift,
        changed=changed,
        changed_pictures=_with_pictures(changed["examples"], config.catalog),
        histogram=plots.score_histogram(np.array(facts["histogram"]), lines),
        classes=_classes(facts["labels"], findings.labels_before, meta.data.get("labels")),
        num_classes=len(facts["labels"]),
        stages=stages,
        bottleneck=max(stages, key=lambda row: (row["utilisation"], row["seconds"]), default=None),
        cost=facts["cost"],
        corrected=facts["corrected"],
        source=facts.get("source"),
        products=facts["products"],
        taxonomy=facts["taxonomy"],
        combinations=facts["products"]["combination"]["tried"] if facts["products"] else (),
        outdated=facts["outdated"],
        queue=queue,
        queue_pictures=_with_pictures([{**row, "uri": row["image"]} for row in queue[:NUM_QUEUED]], config.catalog),
        errors=error_summary(facts["errors_by_code"], facts["examples"]),
    )
    run.write("report.html", page)


def of_rows(counts: Mapping[str, int]) -> tuple[bool, str]:
    """Whether all rows have a prediction, and in a sentence."""
    if counts["failed"]:
        told = f"{counts['failed']:,} of {counts['rows']:,} rows have no prediction: see Errors for the reasons."
        return False, told
    return True, f"All {counts['rows']:,} rows have a prediction."


def of_drift(drift: Sequence[Drift]) -> list[tuple[bool, str]]:
    """What changed much, in a sentence; nothing where nothing did."""
    drifted = [f"{one.what} (against the {one.reference})" for one in drift if one.psi_above_noise >= MUCH]
    told = f"Much change, beyond chance, of {', '.join(drifted)}: look at Drift before use."
    return [(False, told)] if drifted else []


def _answers(facts: Mapping[str, Any], findings: Findings) -> list[tuple[bool, str]]:
    """Is it good, what changed, what is there to do: whether each is good, and in a sentence."""
    counts, decisions = facts["counts"], facts["decisions"]
    waiting = sum(decisions.get(name, 0) for name in ("review", "abstain"))
    answers = [of_rows(counts)]
    if findings.labels_before is None:
        answers.append((True, "This is the first run: there is nothing to compare it with."))
    elif count := findings.changed["count"]:
        answers.append((False, f"{count:,} rows have another label than in the previous run."))
    else:
        answers.append((True, "No row has another label than in the previous run."))
    answers += of_drift(findings.drift)
    if waiting:
        answers.append((False, f"{waiting:,} predictions wait for a person: go through them at To review."))
    else:
        answers.append((True, "Nothing waits for a person."))
    return answers


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


def _classes(
    current: Mapping[str, int], before: Mapping[str, int] | None, training: Mapping[str, int] | None
) -> list[dict[str, object]]:
    """Return rows per class beside the previous run and shares beside training; None if unknown."""
    total, trained = max(1, sum(current.values())), sum((training or {}).values())

    def rank(name: str) -> tuple[int, int, str]:
        now = current.get(name, 0)
        return -abs(now - before.get(name, 0) if before else 0), -now, name

    return [
        {
            "label": name,
            "rows": current.get(name, 0),
            "before": before.get(name, 0) if before else None,
            "share": current.get(name, 0) / total,
            "training": training.get(name, 0) / trained if training and trained else None,
        }
        for name in sorted({*current, *(before or {})}, key=rank)[:NUM_CLASSES]
    ]


def _with_pictures(rows: Sequence[dict[str, Any]], section: CatalogSection) -> list[dict[str, object]]:
    pictures = thumbnails([row["uri"] for row in rows], section)
    return [row | {"picture": picture, "facts": _facts(row)} for row, picture in zip(rows, pictures, strict=True)]


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    return picture_facts(
        id=row.get("item_id", row.get("id")),
        predicted=row["pred_label"],
        confidence=row["pred_score"],
        previous_run=row.get("before", row.get("label_before")),
        label_of_the_catalog=row.get("catalog_label"),
        address=row["uri"],
    )
