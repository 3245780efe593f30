"""Embeddings of images in a few numbers, to tell whether new images resemble those the model was validated on.

The embedding is what enters the head. It is averaged over positions, where it has any, and projected on
:data:`SIZE` fixed random directions, which keep distances nearly (Johnson and Lindenstrauss 1984): a row costs 64 bytes
instead of 8 KB, and rows of different runs and machines are comparable.
"""

import functools

import torch

SIZE = 16


@functools.cache
def _directions(width: int) -> torch.Tensor:
    """float32 ``(width, SIZE)``, the same in every process."""
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, SIZE, generator=generator) / width**0.5


def pooled(features: torch.Tensor) -> torch.Tensor:
    """What enters a head, ``(B, D)`` or ``(B, D, ...)``, averaged over positions: float32 ``(B, D)`` on the CPU."""
    found = features.float().flatten(2).mean(2) if features.ndim > 2 else features.float()
    return found.cpu()


def sketch(features: torch.Tensor) -> torch.Tensor:
    """The same, projected: float32 ``(B, SIZE)`` on the CPU."""
    found = pooled(features)
    return found @ _directions(found.shape[1])
