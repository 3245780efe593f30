"""One temperature for all logits, fitted on rows the model was not trained on (Guo et al. 2017, arXiv 1706.04599)."""

import torch
from torch import nn

BOUNDS = (0.05, 20.0)


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
