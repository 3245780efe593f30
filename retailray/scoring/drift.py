"""Measure how far the predictions of a run differ from those of the previous run and of the validation rows."""

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
VALUES = "values"  # of numbers, by the intervals that are most probable
DECILES = np.linspace(0, 1, 11)[1:-1]  # of every number of an embedding
NOISE_QUANTILE, DRAWS, EMBEDDING_DRAWS = 0.99, 500, 100
SAMPLE = 20_000  # embeddings of a run that are compared
UNUSUAL = 0.995  # quantile of the reference's own distances, above which an image is an outlier
MIN_EMBEDDINGS = 200  # of a reference: with 50, ten times too many images were outliers
PREVIOUS_RUN, VALIDATION = "previous run", "validation rows"


@dataclasses.dataclass(frozen=True)
class Drift:
    """One comparison with a reference.

    Attributes:
        what: labels, confidence or embeddings; of numbers values and embeddings.
        reference: the previous run or the validation rows.
        rows: of the reference.
        psi: population stability index; below 0.1 is usually called stable, above 0.25 a large change.
        expected_psi: what the index stays below in 99 % of draws where nothing but the choice of the rows differs.
        js: Jensen-Shannon distance to base 2, from 0 to 1.
    """

    what: str
    reference: str
    rows: int
    psi: float
    expected_psi: float
    js: float

    @property
    def psi_above_noise(self) -> float:
        """The part of the index that sampling does not explain."""
        return max(0.0, self.psi - self.expected_psi)

    @property
    def gates(self) -> bool:
        """Whether score.max_drift applies. Validation rows are a selection of labels, so their shares may differ."""
        return self.what not in (LABELS, VALUES) or self.reference != VALIDATION


def distance(reference: Mapping[Any, int], current: Mapping[Any, int]) -> tuple[float, float, float]:
    """Return the PSI of two counts by name, its expected value by chance, and their Jensen-Shannon distance."""
    names = sorted(set(reference) | set(current))
    counts = [np.array([found.get(name, 0) for name in names], float) for found in (reference, current)]
    p, q = (_shares(one) for one in counts)
    return _psi(p, q), _expected_psi(*counts), float(_js_distance(p, q))


def _js_distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distances in bits of shares ``(..., K)``."""
    from scipy.special import rel_entr  # not scipy.spatial.distance.jensenshannon, whose import takes half a second

    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2 / np.log(2)
    return np.asarray(np.sqrt(np.maximum(divergence, 0)))  # rounding may leave a little less than nothing


def _shares(counts: np.ndarray) -> np.ndarray:
    return (counts + PSEUDO) / (counts + PSEUDO).sum(-1, keepdims=True)


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    return float(((q - p) * np.log(q / p)).sum())


def _expected_psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Return a quantile of the PSI between two samples that are drawn from both counts together."""
    generator = np.random.default_rng(0)
    shares = (reference + current) / (reference + current).sum()
    sizes = int(reference.sum()), int(current.sum())
    drawn = [
        _psi(*(_shares(generator.multinomial(size, shares).astype(float)) for size in sizes)) for _ in range(DRAWS)
    ]
    return float(np.quantile(drawn, NOISE_QUANTILE))


@dataclasses.dataclass(frozen=True)
class OutlierModel:
    """Mean ``(D,)`` and standard deviation ``scale`` ``(D,)`` of reference embeddings.

    The distance of an embedding is its mean squared z-score; above ``limit`` it is an outlier.
    """

    mean: np.ndarray
    scale: np.ndarray
    limit: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "OutlierModel":
        mean, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
        distances = (((embeddings - mean) / scale) ** 2).mean(1)
        return cls(mean, scale, float(np.quantile(distances, UNUSUAL)))

    def sql(self, column: str) -> str:
        """Return SQL for the distance of a column of embeddings."""
        parts = [
            f"pow(({column}[{at}] - ({float(mean)!r})) / {float(scale)!r}, 2)"
            for at, (mean, scale) in enumerate(zip(self.mean, self.scale, strict=True), 1)
        ]
        return f"({' + '.join(parts)}) / {len(parts)}"


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """Predictions of a run or of validation rows.

    Counts by ``labels`` and by bin of ``confidence``; ``embeddings``: a sample ``(N, D)``, or None if there are none.
    """

    labels: Mapping[str, int]
    confidence: Mapping[int, int]
    embeddings: np.ndarray | None

    @property
    def num_rows(self) -> int:
        return sum(self.labels.values())


def references(ledger: Ledger, validation: Validation | None) -> dict[str, PredictionSummary]:
    """Return what this run is compared with: the previous run, and the rows that the bundle was validated on."""
    previous = _summarize(ledger, "known", f"origin = {PUBLISHED}", comparable="usable")
    found = {PREVIOUS_RUN: previous}
    if validation:
        bins = np.minimum((validation.scores * BINS).astype(int), BINS - 1)
        found[VALIDATION] = PredictionSummary(_tally(validation.predicted), _tally(bins), validation.embeddings)
    return {name: summary for name, summary in found.items() if summary.num_rows}


def outlier_model_of(summaries: Mapping[str, PredictionSummary]) -> OutlierModel | None:
    """Fit it to the validation rows, else to the previous run; None if neither has :data:`MIN_EMBEDDINGS`."""
    for name in (VALIDATION, PREVIOUS_RUN):
        if name in summaries and (rows := summaries[name].embeddings) is not None and len(rows) >= MIN_EMBEDDINGS:
            return OutlierModel.of(rows)
    return None


def measure_drift(ledger: Ledger, summaries: Mapping[str, PredictionSummary], *, numbers: bool = False) -> list[Drift]:
    """Compare labels, confidences and embeddings, as predicted by the model, with each reference.

    ``numbers``: labels are intervals of numbers then, and confidences say nothing of these.
    An image counts once, even if several rows name it, because the ledger of the previous run has images.
    """
    current = _summarize(ledger, "image_results", "error_code = ''")
    if not current.num_rows:
        return []
    found = []
    for name, reference in summaries.items():
        for what, of in {VALUES: LABELS}.items() if numbers else ((LABELS, LABELS), (CONFIDENCE, CONFIDENCE)):
            measured = distance(getattr(reference, of), getattr(current, of))
            found.append(Drift(what, name, reference.num_rows, *measured))
        if reference.embeddings is not None and current.embeddings is not None:
            measured = embedding_distance(reference.embeddings, current.embeddings)
            found.append(Drift(EMBEDDINGS, name, len(reference.embeddings), *measured))
    return found


def embedding_distance(reference: np.ndarray, current: np.ndarray) -> tuple[float, float, float]:
    """Return PSI, expected PSI and Jensen-Shannon distance of embeddings ``(N, D)`` and ``(M, D)``.

    All three are means over the D numbers, each counted by the reference's deciles. The expected PSI is that between
    random parts of all rows together.
    """
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
    expected = np.quantile([measure(first, second)[0] for first, second in shuffled], NOISE_QUANTILE)
    return psi, float(expected), js


def binned(column: str) -> str:
    """SQL for the bin of a column of confidences, from 0."""
    return f"least(cast(floor({column} * {BINS}) as int), {BINS - 1})"


def _tally(values: np.ndarray) -> dict[Any, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _summarize(ledger: Ledger, table: str, where: str, comparable: str = "true") -> PredictionSummary:
    """``comparable``: SQL for the rows whose embeddings are of the present model."""
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


def changed_labels(ledger: Ledger, *, limit: int) -> dict[str, object]:
    """Return the rows whose label differs from the previous run: number, moves, and the most confident ones."""
    both = (
        "from row_results f join known k using (uri) "
        f"where k.origin = {PUBLISHED} and f.code = '' and k.pred_label is not null and f.model_label <> k.pred_label"
    )
    moves = ledger.table(
        f'select k.pred_label as "from", f.model_label as "to", count(*) as rows {both} group by 1, 2 '
        f"order by 3 desc, 1, 2 limit {limit}"
    )
    examples = ledger.table(
        f"select f.id, f.uri, k.pred_label as before, f.model_label as pred_label, "
        f"f.model_score as pred_score {both} "
        f"order by f.model_score desc, f.row_id limit {limit}"
    )
    return {
        "count": ledger.one(f"select count(*) {both}"),
        "moves": moves.to_pylist(),
        "examples": examples.to_pylist(),
    }
