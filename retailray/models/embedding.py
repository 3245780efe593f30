"""Embeddings of images: what enters the head, averaged over positions where it has any.

Projected on fixed random directions, which keep distances nearly (Johnson and Lindenstrauss 1984), rows of different
runs and machines are comparable. :data:`SIZE` numbers tell whether new images resemble those that the model was
validated on: a row costs 64 bytes instead of 8 KB.
"""

import functools

import numpy as np
import pyarrow as pa
import torch

from retailray.models.probabilities import packed

SIZE = 16


MOST = 65504.0  # the largest number that a float16 holds


@functools.cache
def _directions(width: int, size: int = SIZE) -> torch.Tensor:
    """float32 ``(width, size)``, the same in every process."""
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, size, generator=generator) / width**0.5


def pooled(features: torch.Tensor) -> torch.Tensor:
    """What enters a head, ``(B, D)`` or ``(B, D, ...)``, averaged over positions: float32 ``(B, D)`` on the CPU."""
    found = features.float().flatten(2).mean(2) if features.ndim > 2 else features.float()
    return found.cpu()


def sketch(features: torch.Tensor) -> torch.Tensor:
    """The same, projected: float32 ``(B, SIZE)`` on the CPU."""
    found = pooled(features)
    return found @ _directions(found.shape[1])


def published(features: np.ndarray, size: int | None = None) -> pa.Array:
    """float ``(N, D)`` as :func:`retailray.models.probabilities.packed` has them; of ``size`` numbers, if given."""
    if size is not None and size < features.shape[1]:
        features = features @ _directions(features.shape[1], size).numpy()
    return packed(np.clip(features, -MOST, MOST).astype(np.float16))
