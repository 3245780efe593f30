"""What rows that the model was not trained on say of its confidence.

One temperature for all logits (Guo et al. 2017, arXiv 1706.04599), fitted on rows of their own, and what came of every
row; thresholds are fitted on yet other rows when a catalog is scored (:mod:`retailray.models.thresholds`).
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from retailray.data.numeric_labels import VALUE
from retailray.models.meta import EMBEDDING, ROLES, TEMPERATURE
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD, lists_of, most_probable

BOUNDS = (0.05, 20.0)
FITTED = 8_000_000  # most logits that the temperature is fitted on; they are copied several times
AT_ONCE = 256  # rows whose logits are copied at once, because logits of many classes are large


@dataclasses.dataclass(frozen=True)
class Calibration:
    """``row_ids``: int64 ``(N,)``, of the catalog; ``roles``: object ``(N,)``, of :data:`ROLES`; ``targets`` and
    ``predicted``: int64 ``(N,)``, classes; ``scores``: float32 ``(N,)``, calibrated confidences; ``embeddings``:
    float32 ``(N, retailray.models.embedding.SIZE)``; ``classes``, ``probabilities``: the most probable ones of each
    row (:func:`retailray.models.probabilities.most_probable`)."""

    temperature: float
    row_ids: np.ndarray
    roles: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def num_rows(self) -> dict[str, int]:
        """Rows by role."""
        return {role: int((self.roles == role).sum()) for role in ROLES}


def calibrate(
    logits: torch.Tensor, targets: torch.Tensor, embeddings: torch.Tensor, row_ids: torch.Tensor, roles: np.ndarray
) -> Calibration:
    """Fit the temperature on the rows of that role, and say what it makes of all.

    Args:
        logits: float ``(N, C)``. targets, row_ids: int64 ``(N,)``. embeddings: float ``(N, D)``. roles: object
            ``(N,)``.
    """
    finite = torch.cat([part.isfinite().all(1) for part in logits.split(AT_ONCE)]) & embeddings.isfinite().all(1)
    if not finite.all():
        logits, targets, embeddings, row_ids = (part[finite] for part in (logits, targets, embeddings, row_ids))
        roles = roles[finite.numpy()]
    fitted = torch.from_numpy(roles == TEMPERATURE)
    temperature = fit_temperature(logits[fitted], targets[fitted])
    best = [most_probable((part.float() / temperature).softmax(1).numpy()) for part in logits.split(AT_ONCE)]
    classes, probabilities = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return Calibration(
        temperature,
        row_ids.numpy(),
        roles,
        targets.numpy(),
        classes[:, 0].astype(np.int64),
        probabilities[:, 0],
        embeddings.numpy(),
        classes,
        probabilities,
    )


def validation_table(calibration: Calibration, rows: pa.Table, labels: list[str]) -> pa.Table:
    """What a bundle keeps of its validation rows (:func:`retailray.models.meta.load_validation`).

    ``rows``: of the catalog, with ``row_id``, ``id`` and ``group``, and ``value`` where labels are numbers.
    """
    rows = rows.take(pc.index_in(pa.array(calibration.row_ids), value_set=rows.column("row_id").combine_chunks()))
    names = pa.array(labels)
    values = {VALUE: rows.column(VALUE)} if VALUE in rows.column_names else {}
    return pa.table(
        {
            "id": rows.column("id"),
            "group": rows.column("group"),
            "role": pa.array(calibration.roles.tolist(), pa.string()),
            "label": names.take(pa.array(calibration.targets)),
            "pred_label": names.take(pa.array(calibration.predicted)),
            "pred_score": calibration.scores,
            EMBEDDING: pa.array(list(calibration.embeddings), pa.list_(pa.float32())),
            CLASSES_FIELD.name: lists_of(calibration.classes),
            PROBABILITIES_FIELD.name: lists_of(calibration.probabilities),
            **values,
        }
    )


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature T that minimises the cross-entropy of ``softmax(logits / T)``.

    Args:
        logits: float ``(N, C)``. targets: int64 ``(N,)``.

    Returns:
        T within :data:`BOUNDS`; 1.0 where there are no rows.
    """
    if not len(targets):
        return 1.0
    every = max(1, -(-logits.numel() // FITTED))  # with many classes a subset of the rows is enough
    logits, targets = logits[::every].double(), targets[::every]
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(logits / log_temperature.exp(), targets)
        loss.backward()
        return loss

    solver.step(closure)
    low, high = BOUNDS
    temperature = float(log_temperature.detach().exp())
    return min(max(temperature, low), high) if temperature == temperature else 1.0
