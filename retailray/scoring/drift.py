"""How far tonight's predictions lie from last night's and from the rows that the model was validated on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from retailray.models.meta import EMBEDDING
from retailray.models.thresholds import Validation
from retailray.scoring.ledger import PUBLISHED, Ledger

BINS = 20  # of confidence
PSEUDO = 0.5  # rows added to every class or bin, so that an empty one is not infinitely far
LABELS, CONFIDENCE, EMBEDDINGS = "labels", "confidence", "embeddings"
DECILES = np.linspace(0, 1, 11)[1:-1]  # of every number of an embedding
NOISE_QUANTILE, DRAWS, EMBEDDING_DRAWS = 0.99, 500, 100
SAMPLE = 20_000  # embeddings of a night that are compared
UNUSUAL = 0.995  # quantile of the reference's own oddity from which a picture counts as unlike it
ENOUGH = 200  # embeddings of a reference, or its limit is drawn too narrow: of 50, ten times too many were unusual
LAST_NIGHT, VALIDATION = "last night", "validation rows"


@dataclasses.dataclass(frozen=True)
class Drift:
    """One comparison. ``psi``: population stability index (below 0.1 is usually called stable, above 0.25 a large
    change); ``noise``: what it stays below in :data:`NOISE_QUANTILE` of cases where nothing but the draw of the rows
    differs, which matters where they are few; ``js``: Jensen-Shannon distance to base 2, from 0 to 1. ``rows``: of the
    reference."""

    what: str
    against: str
    rows: int
    psi: float
    noise: float
    js: float

    @property
    def above_noise(self) -> float:
        """What of the index chance does not explain."""
        return max(0.0, self.psi - self.noise)

    @property
    def gates(self) -> bool:
        """Validation rows are a selection: that their labels have other shares than the catalog's is no drift."""
        return (self.what, self.against) != (LABELS, VALIDATION)


def distance(reference: Mapping[Any, int], current: Mapping[Any, int]) -> tuple[float, float, float]:
    """PSI of two counts by name, its noise, and their Jensen-Shannon distance."""
    names = sorted(set(reference) | set(current))
    counts = [np.array([found.get(name, 0) for name in names], float) for found in (reference, current)]
    p, q = (_shares(one) for one in counts)
    return _psi(p, q), _noise(*counts), float(_js_distance(p, q))


def _js_distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distances in bits of shares ``(..., K)``."""
    from scipy.spatial.distance import jensenshannon  # most of a second, which a first night saves

    return np.asarray(jensenshannon(p, q, base=2, axis=-1))


def _shares(counts: np.ndarray) -> np.ndarray:
    return (counts + PSEUDO) / (counts + PSEUDO).sum(-1, keepdims=True)


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    return float(((q - p) * np.log(q / p)).sum())


def _noise(reference: np.ndarray, current: np.ndarray) -> float:
    """Draw both counts from what they are together, again and again: a quantile of the PSI between them."""
    generator = np.random.default_rng(0)
    shares = (reference + current) / (reference + current).sum()
    sizes = int(reference.sum()), int(current.sum())
    drawn = [
        _psi(*(_shares(generator.multinomial(size, shares).astype(float)) for size in sizes)) for _ in range(DRAWS)
    ]
    return float(np.quantile(drawn, NOISE_QUANTILE))


@dataclasses.dataclass(frozen=True)
class OutlierModel:
    """What embeddings of the usual kind are like. The oddity of one is its mean squared distance from ``mean``
    ``(D,)``, in units of ``scale`` ``(D,)``; over ``limit`` it is unusual."""

    mean: np.ndarray
    scale: np.ndarray
    limit: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "OutlierModel":
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
class PredictionSummary:
    """Predictions of one night, or of validation rows: ``labels`` and ``confidence`` (by bin) in counts, ``embeddings``
    a sample ``(N, D)``, None where there are none."""

    labels: Mapping[str, int]
    confidence: Mapping[int, int]
    embeddings: np.ndarray | None

    @property
    def num_rows(self) -> int:
        return sum(self.labels.values())


def references(ledger: Ledger, validation: Validation | None) -> dict[str, PredictionSummary]:
    """What tonight can be compared with: last night, and the rows that the bundle was validated on."""
    before = _night(ledger, "known", f"origin = {PUBLISHED}", comparable="usable")
    found = {LAST_NIGHT: before}
    if validation:
        bins = np.minimum((validation.scores * BINS).astype(int), BINS - 1)
        found[VALIDATION] = PredictionSummary(_tally(validation.predicted), _tally(bins), validation.embeddings)
    return {name: night for name, night in found.items() if night.num_rows}


def outlier_model_of(nights: Mapping[str, PredictionSummary]) -> OutlierModel | None:
    """By the validation rows, else by last night; None where neither has :data:`ENOUGH` embeddings."""
    for name in (VALIDATION, LAST_NIGHT):
        if name in nights and (rows := nights[name].embeddings) is not None and len(rows) >= ENOUGH:
            return OutlierModel.of(rows)
    return None


def measure_drift(ledger: Ledger, nights: Mapping[str, PredictionSummary]) -> list[Drift]:
    """Labels, confidences and embeddings of tonight, as the model gave them, against each of the others.

    An image counts once, of however many rows it is: the ledger of last night knows images.
    """
    tonight = _night(ledger, "image_results", "error_code = ''")
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
    deciles. Noise is what random halves of all rows together differ by."""
    edges = np.quantile(reference, DECILES, axis=0)
    together = np.concatenate([reference, current])
    bins = np.stack([np.searchsorted(edges[:, at], together[:, at]) for at in range(together.shape[1])], axis=1)
    bins += np.arange(bins.shape[1]) * (len(DECILES) + 1)

    def measure(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
        size = bins.shape[1] * (len(DECILES) + 1)
        p, q = (
            _shares(np.bincount(bins[rows].ravel(), minlength=size).reshape(bins.shape[1], -1).astype(float))
            for rows in (first, second)
        )
        return _psi(p, q) / len(p), float(np.mean(_js_distance(p, q)))

    order, generator = np.arange(len(together)), np.random.default_rng(0)
    psi, js = measure(order[: len(reference)], order[len(reference) :])
    shuffled = [np.split(generator.permutation(order), [len(reference)]) for _ in range(EMBEDDING_DRAWS)]
    noise = np.quantile([measure(first, second)[0] for first, second in shuffled], NOISE_QUANTILE)
    return psi, float(noise), js


def binned(column: str) -> str:
    """SQL for the bin of a column of confidences, from 0."""
    return f"least(cast(floor({column} * {BINS}) as int), {BINS - 1})"


def _tally(values: np.ndarray) -> dict[Any, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _night(ledger: Ledger, table: str, where: str, comparable: str = "true") -> PredictionSummary:
    """``comparable``: which rows' embeddings are of the model of tonight."""
    good = f"from {table} where {where} and pred_label is not null"
    rows = ledger.table(
        f"select {EMBEDDING} from (select {EMBEDDING} {good} and {EMBEDDING} is not null and {comparable}) "
        f"using sample reservoir({SAMPLE} rows) repeatable (0)"
    )
    return PredictionSummary(
        ledger.counts(f"select pred_label, count(*) {good} group by 1"),
        ledger.counts(f"select {binned('pred_score')}, count(*) {good} group by 1"),
        np.stack(rows.column(0).to_numpy()) if rows.num_rows else None,
    )


def changed_labels(ledger: Ledger, *, limit: int) -> dict[str, Any]:
    """Rows whose label is another than last night's: how many, from what to what, and the surest of them."""
    both = (
        "from row_results f join known k using (uri) "
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
