"""Decoded rows to prediction rows in a pool of predictor actors."""

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.data.decoding import CODE, MESSAGE, PIXELS, pixels_to_numpy, with_errors
from retailray.models.meta import EMBEDDING

if TYPE_CHECKING:
    from retailray.execution import Reporter, Stream
    from retailray.models.predictor import Predictor

PREDICT = "predict"  # the stage
PREDICTION_SCHEMA = pa.schema(
    [
        ("pred_label", pa.string()),
        ("pred_score", pa.float32()),
        ("topk_labels", pa.list_(pa.string())),
        ("topk_scores", pa.list_(pa.float32())),
    ]
)
EMBEDDING_FIELD = pa.field(EMBEDDING, pa.list_(pa.float32()))  # of the pixels, by the model that predicted
SCORED_AT = pa.field("__rr_scored_at", pa.string())  # of the rows between predictor and commit
UNCALIBRATED = pa.field("uncalibrated_score", pa.float32())  # what pred_score is at temperature 1


@dataclasses.dataclass(frozen=True)
class PredictorSettings:
    """What an actor needs to know to predict.

    Attributes:
        uri: of the bundle.
        precision: float32, bfloat16 or auto.
        agreement: address of the file in which the first actor stores the precision that it measured for auto, and
            which all others read; None: every actor measures.
        also: :data:`UNCALIBRATED`, :data:`EMBEDDING_FIELD`, :data:`SCORED_AT`: columns that are appended.
    """

    uri: str
    use_gpu: bool
    threads: int
    top_k: int
    precision: str = "auto"
    agreement: str | None = None
    also: tuple[pa.Field, ...] = ()


def predict_stream(images: "Stream", settings: PredictorSettings, *, batch_size: int, reporter: "Reporter") -> "Stream":
    """Replace the pixels of decoded images by the columns of :data:`PREDICTION_SCHEMA` (null where a row failed).

    ``reporter`` counts every batch.
    """
    return images.map_with(PredictBatch, {"settings": settings, "reporter": reporter}, rows=batch_size)


def _agreed(precision: str, address: str | None, make: Callable[[str], "Predictor"]) -> "Predictor":
    """A predictor in ``precision``, or, of auto, in what stands at ``address``; the first one there decides it."""
    if address and storage.exists(address):
        return make(storage.read_bytes(address).decode())
    predictor = make(precision)
    if address and not storage.put_if_absent(address, predictor.precision.encode()):
        predictor.precision = storage.read_bytes(address).decode()
    return predictor


def _finite(logits: np.ndarray, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray] | Exception:
    """What a model gives for one image, or an error where a number of it is NaN or infinite."""
    if np.isfinite(logits).all() and np.isfinite(embedding).all():
        return logits, embedding
    return ArithmeticError("the model's output is not finite (NaN or infinite)")


class PredictBatch:
    """An actor that holds the model and turns Arrow batches with pixels into batches with predictions."""

    def __init__(self, *, settings: PredictorSettings, reporter: "Reporter") -> None:
        # torch is for actors alone: the tasks that decode and commit import this module's neighbours too
        from retailray.execution.process import prepare_process
        from retailray.models.bundle import load_bundle
        from retailray.models.predictor import Predictor

        prepare_process(settings.threads)
        bundle = load_bundle(settings.uri)
        device = "cuda" if settings.use_gpu else "cpu"
        self.reporter = reporter
        agreement = settings.agreement if settings.precision == "auto" else None
        make = functools.partial(Predictor, bundle, device=device)
        self.predictor = _agreed(settings.precision, agreement, lambda known: make(precision=known))
        self.size = bundle.meta.transform.crop_size
        self.labels = np.array(bundle.meta.labels, dtype=object)
        self.top_k = min(settings.top_k, len(self.labels))
        self.fields = [*PREDICTION_SCHEMA, *settings.also]

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.monotonic()
        codes, messages = table.column(CODE).to_pylist(), table.column(MESSAGE).to_pylist()
        usable = np.array([index for index, code in enumerate(codes) if not code], dtype=np.int64)
        predictions: list[dict[str, object] | None] = [None] * table.num_rows
        images = pixels_to_numpy(table.column(PIXELS), self.size)
        good: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, outcome in zip(usable, self._predict(images[usable]), strict=True):
            if isinstance(outcome, Exception):
                codes[index], messages[index] = "predict_failed", f"{type(outcome).__name__}: {outcome}"[:500]
            else:
                good[index] = outcome
        if good:
            logits = np.stack([row for row, _ in good.values()])
            probabilities = self.predictor.probabilities(logits)
            plain = self.predictor.probabilities(logits, calibrated=False)
            for (index, (_, embedding)), row, plain_row in zip(good.items(), probabilities, plain, strict=True):
                predictions[index] = self._row(row, plain_row) | {EMBEDDING: embedding, SCORED_AT.name: None}
        table = with_errors(table.drop_columns([PIXELS]), codes, messages)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for field in self.fields:
            values = [row[field.name] if row else None for row in predictions]
            if field.name == SCORED_AT.name:  # of rows that failed too
                values = [now] * table.num_rows
            table = table.append_column(field, pa.array(values, field.type))
        self.reporter.step(table.num_rows)
        self.reporter.spend({PREDICT: time.monotonic() - started})
        return table

    def _predict(self, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray] | Exception]:
        """Return logits and embedding per image. A batch that fails is bisected to find the bad image."""
        if len(images) == 0:
            return []
        try:
            return [_finite(*outputs) for outputs in zip(*self.predictor.outputs(images), strict=True)]
        except Exception as error:  # whatever the model raises is this image's error row
            if len(images) == 1:
                return [error]
            middle = len(images) // 2
            return self._predict(images[:middle]) + self._predict(images[middle:])

    def _row(self, probabilities: np.ndarray, uncalibrated: np.ndarray) -> dict[str, object]:
        top = np.argsort(-probabilities, kind="stable")[: self.top_k]
        score = float(probabilities[top[0]])
        return {
            "pred_label": self.labels[top[0]],
            "pred_score": score,
            "topk_labels": self.labels[top].tolist(),
            "topk_scores": probabilities[top].tolist(),
            UNCALIBRATED.name: float(uncalibrated[top[0]]),
        }
