"""How far tonight's predictions lie from last night's and from the rows that the model was validated on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from retailray.models.meta import EMBEDDING
from retailray.models.thresholds import Validation
from retailray.scoring.ledger import PUBLISHED, Ledger

BINS = 20  # of confidence
PSEUDO = 0.5  # rows added to every class or bin, so that an empty one is not infinitely far
LABELS, CONFIDENCE, EMBEDDINGS = "labels", "confidence", "embeddings"
DECILES = np.linspace(0, 1, 11)[1:-1]  # of every number of an embedding
SAMPLE = 20_000  # embeddings of a night that are compared
UNUSUAL = 0.995  # quantile of the reference's own oddity from which a picture counts as unlike it
ENOUGH = 200  # embeddings of a reference, or its limit is drawn too narrow: of 50, ten times too many were unusual
LAST_NIGHT, VALIDATION = "last night", "validation rows"


@dataclasses.dataclass(frozen=True)
class Drift:
    """One comparison. ``psi``: population stability index (below 0.1 is usually called stable, above 0.25 a large
    change); ``chance``: what it would be about if nothing but the draw of the rows differed, which matters where they
    are few; ``js``: Jensen-Shannon distance to base 2, from 0 to 1. ``rows``: of the reference."""

    what: str
    against: str
    rows: int
    psi: float
    chance: float
    js: float

    @property
    def excess(self) -> float:
        """What of the index is not chance."""
        return max(0.0, self.psi - self.chance)


def distance(reference: Mapping[Any, int], current: Mapping[Any, int]) -> tuple[float, float, float]:
    """PSI, what chance alone makes of it, and Jensen-Shannon distance of two counts by name."""
    names = sorted(set(reference) | set(current))
    chance = (len(names) - 1) * (1 / sum(reference.values()) + 1 / sum(current.values()))
    p, q = (np.array([counts.get(name, 0) for name in names], float) + PSEUDO for counts in (reference, current))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum()), chance, float(jensenshannon(p, q, base=2))


@dataclasses.dataclass(frozen=True)
class Usual:
    """What embeddings of the usual kind are like. The oddity of one is its mean squared distance from ``mean``
    ``(D,)``, in units of ``scale`` ``(D,)``; over ``limit`` it is unusual."""

    mean: np.ndarray
    scale: np.ndarray
    limit: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Usual":
        mean, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
        oddity = (((embeddings - mean) / scale) ** 2).mean(1)
        return cls(mean, scale, float(np.quantile(oddity, UNUSUAL)))

    def sql(self, column: str) -> str:
        """The oddity of a column of embeddings."""
        parts = [
            f"pow(({column}[{at}] - ({float(mean)!r})) / {float(scale)!r}, 2)"
            for at, (mean, scale) in enumerate(zip(self.mean, self.scale, strict=True), 1)
        ]
        return f"({' + '.join(parts)}) / {len(parts)}"


@dataclasses.dataclass(frozen=True)
class Night:
    """Predictions of one night, or of validation rows: ``labels`` and ``confidence`` (by bin) in counts, ``embeddings``
    a sample ``(N, D)``, None where there are none."""

    labels: Mapping[str, int]
    confidence: Mapping[int, int]
    embeddings: np.ndarray | None

    @property
    def num_rows(self) -> int:
        return sum(self.labels.values())


def references(ledger: Ledger, validation: Validation | None) -> dict[str, Night]:
    """What tonight can be compared with: last night, and the rows that the bundle was validated on."""
    before = _night(ledger, "known", f"origin = {PUBLISHED}", comparable="usable")
    found = {LAST_NIGHT: before}
    if validation:
        bins = np.minimum((validation.scores * BINS).astype(int), BINS - 1)
        found[VALIDATION] = Night(_tally(validation.predicted), _tally(bins), validation.embeddings)
    return {name: night for name, night in found.items() if night.num_rows}


def usual_of(nights: Mapping[str, Night]) -> Usual | None:
    """By the validation rows, else by last night; None where neither has :data:`ENOUGH` embeddings."""
    for name in (VALIDATION, LAST_NIGHT):
        if name in nights and (rows := nights[name].embeddings) is not None and len(rows) >= ENOUGH:
            return Usual.of(rows)
    return None


def measure_drift(ledger: Ledger, nights: Mapping[str, Night]) -> list[Drift]:
    """Labels, confidences and embeddings of tonight, as the model gave them, against each of the others.

    An image counts once, of however many rows it is: the ledger of last night knows images.
    """
    tonight = _night(ledger, "outcome", "error_code = ''")
    if not tonight.num_rows:
        return []
    found = []
    for against, night in nights.items():
        for what in (LABELS, CONFIDENCE):
            found.append(Drift(what, against, night.num_rows, *distance(getattr(night, what), getattr(tonight, what))))
        if night.embeddings is not None and tonight.embeddings is not None:
            moved = embedding_distance(night.embeddings, tonight.embeddings)
            found.append(Drift(EMBEDDINGS, against, len(night.embeddings), *moved))
    return found


def embedding_distance(reference: np.ndarray, current: np.ndarray) -> tuple[float, float, float]:
    """The same of embeddings ``(N, D)`` and ``(M, D)``: means over their numbers, each counted by the reference's
    deciles."""
    distances = []
    for ours, theirs in zip(reference.T, current.T, strict=True):
        edges = np.quantile(ours, DECILES)
        distances.append(distance(*(_tally(np.searchsorted(edges, values)) for values in (ours, theirs))))
    psi, chance, js = np.mean(distances, axis=0).tolist()
    return psi, chance, js


def binned(column: str) -> str:
    """SQL for the bin of a column of confidences, from 0."""
    return f"least(cast(floor({column} * {BINS}) as int), {BINS - 1})"


def _tally(values: np.ndarray) -> dict[Any, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _night(ledger: Ledger, table: str, where: str, comparable: str = "true") -> Night:
    """``comparable``: which rows' embeddings are of the model of tonight."""
    good = f"from {table} where {where} and pred_label is not null"
    rows = ledger.table(
        f"select {EMBEDDING} from (select {EMBEDDING} {good} and {EMBEDDING} is not null and {comparable}) "
        f"using sample reservoir({SAMPLE} rows) repeatable (0)"
    )
    return Night(
        ledger.counts(f"select pred_label, count(*) {good} group by 1"),
        ledger.counts(f"select {binned('pred_score')}, count(*) {good} group by 1"),
        np.stack(rows.column(0).to_numpy()) if rows.num_rows else None,
    )


def changed_labels(ledger: Ledger, *, limit: int) -> dict[str, Any]:
    """Rows whose label is another than last night's: how many, from what to what, and the surest of them."""
    both = (
        "from final f join known k using (uri) "
        f"where k.origin = {PUBLISHED} and f.code = '' and k.pred_label is not null and f.model_label <> k.pred_label"
    )
    moves = ledger.table(f'select k.pred_label as "from", f.model_label as "to", count(*) as rows {both} group by 1, 2 '
                         f"order by 3 desc, 1, 2 limit {limit}")  # fmt: skip
    examples = ledger.table(f"select f.id, f.uri, k.pred_label as before, f.model_label as pred_label, "
                            f"f.model_score as pred_score {both} "
                            f"order by f.model_score desc, f.row_id limit {limit}")  # fmt: skip
    return {
        "count": ledger.one(f"select count(*) {both}"),
        "moves": moves.to_pylist(),
        "examples": examples.to_pylist(),
    }
