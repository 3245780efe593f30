"""Embeddings of images: what enters the head, averaged over positions where it has any.

Projected on fixed random directions, which keep distances nearly (Johnson and Lindenstrauss 1984), rows of different
runs and machines are comparable. :data:`SIZE` numbers tell whether new images resemble those that the model was
validated on: a row costs 64 bytes instead of 8 KB.
"""

import functools

import numpy as np
import pyarrow as pa
import torch

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


def packed(features: np.ndarray, size: int | None = None) -> pa.Array:
    """float ``(N, D)`` to N binaries of float16, of ``size`` numbers, if given;
    :func:`retailray.models.probabilities.unpacked` reads them.

    DuckDB, which joins them, takes no float16.
    """
    if size is not None and size < features.shape[1]:
        features = features @ _directions(features.shape[1], size).numpy()
    halves = np.ascontiguousarray(np.clip(features, -MOST, MOST).astype("<f2"))
    kind = pa.binary(2 * halves.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(halves), [None, pa.py_buffer(halves)]).cast(pa.binary())
