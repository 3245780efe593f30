"""How far tonight's predictions lie from last night's and from the rows that the model was validated on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from retailray.models.thresholds import Validation
from retailray.scoring.ledger import PUBLISHED, Ledger

BINS = 20  # of confidence
PSEUDO = 0.5  # rows added to every class or bin, so that an empty one is not infinitely far
LABELS, CONFIDENCE = "labels", "confidence"


@dataclasses.dataclass(frozen=True)
class Drift:
    """One comparison. ``psi``: population stability index (below 0.1 is usually called stable, above 0.25 a large
    change); ``js``: Jensen-Shannon distance to base 2, from 0 to 1. ``rows``: of the reference."""

    what: str
    against: str
    rows: int
    psi: float
    js: float


def distance(reference: Mapping[Any, int], current: Mapping[Any, int]) -> tuple[float, float]:
    """PSI and Jensen-Shannon distance of two counts by name."""
    names = sorted(set(reference) | set(current))
    p, q = (np.array([counts.get(name, 0) for name in names], float) + PSEUDO for counts in (reference, current))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum()), float(jensenshannon(p, q, base=2))


def measure_drift(ledger: Ledger, validation: Validation | None) -> list[Drift]:
    """Labels and confidences of tonight against last night's and, where the bundle has them, its validation rows."""
    tonight = _counts(ledger, "final", "code = ''")
    if not sum(tonight[LABELS].values()):
        return []
    references = {"last night": _counts(ledger, "known", f"origin = {PUBLISHED} and pred_label is not null")}
    if validation:
        binned = np.minimum((validation.scores * BINS).astype(int), BINS - 1)
        references["validation rows"] = {
            LABELS: _tally(validation.predicted),
            CONFIDENCE: _tally(binned),
        }
    found = []
    for against, reference in references.items():
        for what, counts in reference.items():
            if rows := sum(counts.values()):
                psi, js = distance(counts, tonight[what])
                found.append(Drift(what, against, rows, psi, js))
    return found


def _tally(values: np.ndarray) -> dict[Any, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _counts(ledger: Ledger, table: str, where: str) -> dict[str, dict[Any, int]]:
    binned = f"least(cast(floor(pred_score * {BINS}) as int), {BINS - 1})"
    return {
        LABELS: ledger.counts(f"select pred_label, count(*) from {table} where {where} group by 1"),
        CONFIDENCE: ledger.counts(f"select {binned}, count(*) from {table} where {where} group by 1"),
    }


def changed_labels(ledger: Ledger, *, limit: int) -> dict[str, Any]:
    """Rows whose label is another than last night's: how many, from what to what, and the surest of them."""
    both = (
        "from final f join known k using (uri) "
        f"where k.origin = {PUBLISHED} and f.code = '' and k.pred_label is not null and f.pred_label <> k.pred_label"
    )
    moves = ledger.table(f'select k.pred_label as "from", f.pred_label as "to", count(*) as rows {both} group by 1, 2 '
                         f"order by 3 desc, 1, 2 limit {limit}")  # fmt: skip
    examples = ledger.table(f"select f.id, f.uri, k.pred_label as before, f.pred_label, f.pred_score {both} "
                            f"order by f.pred_score desc, f.row limit {limit}")  # fmt: skip
    return {
        "count": ledger.one(f"select count(*) {both}"),
        "moves": moves.to_pylist(),
        "examples": examples.to_pylist(),
    }
