"""Decoded rows to prediction rows in a pool of predictor actors."""

import datetime
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.data.decoding import CODE, MESSAGE, PIXELS, pixels_to_numpy, with_errors
from retailray.models.meta import EMBEDDING

if TYPE_CHECKING:
    from retailray.execution import Plan, Reporter, Stream

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


def predict_stream(
    images: "Stream",
    *,
    bundle_uri: str,
    plan: "Plan",
    batch_size: int,
    top_k: int,
    reporter: "Reporter",
    also: Sequence[pa.Field] = (),
    precision: str = "auto",
    agreement: str | None = None,
) -> "Stream":
    """Replace the pixels of decoded images by the columns of :data:`PREDICTION_SCHEMA` (null where a row failed).

    ``also``: :data:`UNCALIBRATED` and :data:`EMBEDDING_FIELD`, :data:`SCORED_AT`, appended. ``reporter``
    counts every batch. ``precision``: float32, bfloat16 or auto. ``agreement``: address of the file in which the first
    actor stores the precision that it measured for auto, and which all others read; None: every actor measures.
    """
    return images.map_with(
        PredictBatch,
        {
            "bundle_uri": bundle_uri,
            "use_gpu": plan.actor_gpus > 0,
            "threads": plan.torch_threads,
            "top_k": top_k,
            "reporter": reporter,
            "also": list(also),
            "precision": precision,
            "agreement": agreement if precision == "auto" else None,
        },
        rows=batch_size,
    )


def _agreed(precision: str, address: str | None, make: Callable[[str], Any]) -> Any:
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

    def __init__(
        self,
        *,
        bundle_uri: str,
        use_gpu: bool,
        threads: int,
        top_k: int,
        reporter: "Reporter",
        also: list[pa.Field],
        precision: str,
        agreement: str | None,
    ) -> None:
        # torch is for actors alone: the tasks that decode and commit import this module's neighbours too
        from retailray.execution.process import prepare_process
        from retailray.models.bundle import load_bundle
        from retailray.models.predictor import Predictor

        prepare_process(threads)
        bundle = load_bundle(bundle_uri)
        device = "cuda" if use_gpu else "cpu"
        self.reporter = reporter
        self.predictor = _agreed(precision, agreement, lambda known: Predictor(bundle, device=device, precision=known))
        self.size = bundle.meta.transform.crop_size
        self.labels = np.array(bundle.meta.labels, dtype=object)
        self.top_k = min(top_k, len(self.labels))
        self.fields = [*PREDICTION_SCHEMA, *also]

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
