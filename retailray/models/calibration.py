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

from retailray.models.meta import EMBEDDING, ROLES, TEMPERATURE

BOUNDS = (0.05, 20.0)
FITTED = 8_000_000  # most logits that the temperature is fitted on; they are copied several times
AT_ONCE = 256  # rows whose logits are copied at once, because logits of many classes are large


@dataclasses.dataclass(frozen=True)
class Calibration:
    """``row_ids``: int64 ``(N,)``, of the catalog; ``roles``: object ``(N,)``, of :data:`ROLES`; ``targets`` and
    ``predicted``: int64 ``(N,)``, classes; ``scores``: float32 ``(N,)``, calibrated confidences; ``embeddings``:
    float32 ``(N, retailray.models.embedding.SIZE)``."""

    temperature: float
    row_ids: np.ndarray
    roles: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray

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
    best = [(part.float() / temperature).softmax(1).max(1) for part in logits.split(AT_ONCE)]
    scores, predicted = (torch.cat([pair[at] for pair in best]) for at in (0, 1))
    return Calibration(
        temperature, row_ids.numpy(), roles, targets.numpy(), predicted.numpy(), scores.numpy(), embeddings.numpy()
    )


def validation_table(calibration: Calibration, rows: pa.Table, labels: list[str]) -> pa.Table:
    """What a bundle keeps of its validation rows (:func:`retailray.models.meta.load_validation`).

    ``rows``: of the catalog, with ``row_id``, ``id`` and ``group``.
    """
    rows = rows.take(pc.index_in(pa.array(calibration.row_ids), value_set=rows.column("row_id").combine_chunks()))
    names = pa.array(labels)
    return pa.table(
        {
            "id": rows.column("id"),
            "group": rows.column("group"),
            "role": pa.array(calibration.roles.tolist(), pa.string()),
            "label": names.take(pa.array(calibration.targets)),
            "pred_label": names.take(pa.array(calibration.predicted)),
            "pred_score": calibration.scores,
            EMBEDDING: pa.array(list(calibration.embeddings), pa.list_(pa.float32())),
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
