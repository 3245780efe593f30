"""What rows that the model was not trained on say of its confidence.

One temperature for all logits (Guo et al. 2017, arXiv 1706.04599), and what came of every row, from which thresholds
are fitted when a catalog is scored (:mod:`retailray.models.thresholds`).
"""

import dataclasses

import numpy as np
import torch
from torch import nn

BOUNDS = (0.05, 20.0)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """``targets`` and ``predicted``: int64 ``(N,)``, classes; ``scores``: float32 ``(N,)``, calibrated confidences;
    ``embeddings``: float32 ``(N, retailray.models.embedding.SIZE)``."""

    temperature: float
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray


def calibrate(logits: torch.Tensor, targets: torch.Tensor, embeddings: torch.Tensor) -> Calibration:
    """Fit the temperature on logits, float ``(N, C)``, and targets, int64 ``(N,)``, and tell what it makes of them."""
    temperature = fit_temperature(logits, targets)
    scores, predicted = (logits.float() / temperature).softmax(1).max(1)
    return Calibration(temperature, targets.numpy(), predicted.numpy(), scores.numpy(), embeddings.numpy())


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature T that minimises the cross-entropy of ``softmax(logits / T)``.

    Args:
        logits: float ``(N, C)``. targets: int64 ``(N,)``.

    Returns:
        T within :data:`BOUNDS`; 1.0 where there are no rows.
    """
    if not len(targets):
        return 1.0
    logits = logits.double()
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
