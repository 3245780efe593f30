"""Decoded rows to prediction rows in a pool of predictor actors."""

import dataclasses
import datetime
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retailray.data.decoding import CODE, MESSAGE, PIXELS, pixels_to_numpy, with_errors
from retailray.models.agreement import Agreement, agreed_predictor
from retailray.models.meta import EMBEDDING
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD, lists, lists_of, most_probable

if TYPE_CHECKING:
    from retailray.execution import Reporter, Stream

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
FEATURES_FIELD = pa.field("features", pa.binary())  # what enters the head: see retailray.models.embedding.published
LOGITS_FIELD = pa.field("logits", pa.list_(pa.float32()))  # of all labels, before the temperature
UNCALIBRATED = pa.field("uncalibrated_score", pa.float32())  # what pred_score is at temperature 1


@dataclasses.dataclass(frozen=True)
class PredictorSettings:
    """What an actor needs to know to predict.

    Attributes:
        uri: of the bundle.
        precision: float32, bfloat16, int8 or auto.
        compile: whether the forward pass is compiled: auto, on or off (:mod:`retailray.models.compiling`).
        num_images: that one actor will see, about. batch_size: of its batches.
        agreement: where the first actor stores the precision that it measured and whether it has compiled.
        also: :data:`UNCALIBRATED`, :data:`EMBEDDING_FIELD`, :data:`FEATURES_FIELD`, :data:`LOGITS_FIELD`,
            :data:`SCORED_AT` and the fields of :mod:`retailray.models.probabilities`: columns that are appended.
        embedding_size: numbers of a row of :data:`FEATURES_FIELD`; None: all.
        mirrored: features are the means of those of an image and of its mirror image, which takes twice the time.
    """

    uri: str
    use_gpu: bool
    threads: int
    top_k: int
    precision: str = "auto"
    compile: str = "off"
    num_images: int = 0
    batch_size: int = 1
    agreement: Agreement = dataclasses.field(default_factory=Agreement)
    also: tuple[pa.Field, ...] = ()
    embedding_size: int | None = None
    mirrored: bool = False


def predict_stream(images: "Stream", settings: PredictorSettings, *, batch_size: int, reporter: "Reporter") -> "Stream":
    """Replace the pixels of decoded images by the columns of :data:`PREDICTION_SCHEMA` (null where a row failed).

    ``reporter`` counts every batch.
    """
    return images.map_with(PredictBatch, {"settings": settings, "reporter": reporter}, rows=batch_size)


# numbers of images, their logits (B, num_labels) and features (B, D)
Part = tuple[np.ndarray, np.ndarray, np.ndarray]


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
        self.reporter, self.mirrored, self.embedding_size = reporter, settings.mirrored, settings.embedding_size
        self.predictor = agreed_predictor(
            settings, lambda precision: Predictor(bundle, device=device, precision=precision), reporter
        )
        self.size = bundle.meta.transform.crop_size
        self.labels = np.array(bundle.meta.labels, dtype=object)
        self.top_k = min(settings.top_k, len(self.labels))
        self.fields = [*PREDICTION_SCHEMA, *settings.also]

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.monotonic()
        codes, messages = table.column(CODE).to_pylist(), table.column(MESSAGE).to_pylist()
        usable = np.array([index for index, code in enumerate(codes) if not code], dtype=np.int64)
        images = pixels_to_numpy(table.column(PIXELS), self.size)
        if len(images) != len(usable):  # failed rows have black ones
            images = images[usable]
        parts, failures = self._predict(images)
        for at, error in failures.items():
            codes[usable[at]], messages[usable[at]] = "predict_failed", f"{type(error).__name__}: {error}"[:500]
        where = np.full(table.num_rows, -1, dtype=np.int64)  # in what was found; nothing of rows that failed
        if parts:
            numbers, logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            where[usable[numbers]] = np.arange(len(numbers))
            found = self._columns(logits, features)
        else:
            found = pa.schema(self.fields).empty_table()
        rows = found.take(pa.array(where, mask=where < 0))
        table = with_errors(table.drop_columns([PIXELS]), codes, messages)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for field in self.fields:
            scored_at = field.name == SCORED_AT.name  # of rows that failed too
            values = pa.array([now] * table.num_rows) if scored_at else rows.column(field.name)
            table = table.append_column(field, values.cast(field.type))
        self.reporter.step(table.num_rows)
        self.reporter.spend({PREDICT: time.monotonic() - started})
        return table

    def _predict(self, images: np.ndarray, first: int = 0) -> tuple[list[Part], dict[int, Exception]]:
        """What the model gives, in parts, and by number why an image has nothing.

        A batch that fails is bisected to find the bad image. ``first``: the number of the first image.
        """
        if len(images) == 0:
            return [], {}
        try:
            logits, features = self.predictor.outputs(images)
            if self.mirrored:
                features = (features + self.predictor.outputs(images[..., ::-1])[1]) / 2
        except Exception as error:  # whatever the model raises is this image's error row
            if len(images) == 1:
                return [], {first: error}
            middle = len(images) // 2
            left, right = self._predict(images[:middle], first), self._predict(images[middle:], first + middle)
            return left[0] + right[0], left[1] | right[1]
        finite = np.isfinite(logits).all(1) & np.isfinite(features).all(1)
        numbers = np.flatnonzero(finite)
        why = ArithmeticError("the model's output is not finite (NaN or infinite)")
        failures: dict[int, Exception] = dict.fromkeys((first + np.flatnonzero(~finite)).tolist(), why)
        return ([(first + numbers, logits[numbers], features[numbers])] if len(numbers) else []), failures

    def _columns(self, logits: np.ndarray, features: np.ndarray) -> pa.Table:
        """A row for each image that could be predicted."""
        import torch

        from retailray.models.embedding import published, sketch

        probabilities = self.predictor.probabilities(logits)
        top = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top_k]
        scores = np.take_along_axis(probabilities, top, axis=1)
        plain = np.take_along_axis(self.predictor.probabilities(logits, calibrated=False), top[:, :1], axis=1)
        names = pa.array(self.labels, pa.string())
        columns = {
            "pred_label": names.take(pa.array(top[:, 0])),
            "pred_score": pa.array(scores[:, 0]),
            "topk_labels": lists(names.take(pa.array(top.ravel())), self.top_k),
            "topk_scores": lists_of(scores),
            UNCALIBRATED.name: pa.array(plain[:, 0]),
        }
        if EMBEDDING_FIELD in self.fields:
            columns[EMBEDDING] = lists_of(sketch(torch.from_numpy(features)).numpy())
        if FEATURES_FIELD in self.fields:
            columns[FEATURES_FIELD.name] = published(features, self.embedding_size)
        if LOGITS_FIELD in self.fields:
            columns[LOGITS_FIELD.name] = lists_of(logits)
        if PROBABILITIES_FIELD in self.fields:
            kept = map(lists_of, most_probable(probabilities))
            columns |= dict(zip((CLASSES_FIELD.name, PROBABILITIES_FIELD.name), kept, strict=True))
        return pa.table(columns)
