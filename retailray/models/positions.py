"""Positions of transformers, interpolated where a network sees pictures of another size than its weights did."""

import math

import torch
from torch import nn

_NAMES = ("pos_embed", "pos_embedding", "position_embeddings")  # the last part of timm's, torchvision's, transformers'


def fitted_positions(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict whose position embeddings ``(1, T, D)`` have the number of tokens that a network has.

    What stands before the square of patches (class and register tokens) is kept as it is. Bicubic with
    antialiasing, as timm does.
    """
    fitted = {
        name: _interpolated(tensor, own[name])
        for name, tensor in state.items()
        if name.rpartition(".")[2] in _NAMES and name in own and tensor.shape != own[name].shape
    }
    return state | fitted


def _interpolated(given: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if given.ndim != 3 or like.ndim != 3 or given.shape[2] != like.shape[2]:
        return given
    sizes = [given.shape[1], like.shape[1]]
    for prefix in range(9):
        sides = [math.isqrt(size - prefix) for size in sizes if size >= prefix]
        if len(sides) == 2 and all(side and side**2 == size - prefix for side, size in zip(sides, sizes, strict=True)):
            break
    else:
        return given
    old, new = sides
    grid = given[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([given[:, :prefix].float(), grid.permute(0, 2, 3, 1).reshape(1, new**2, -1)], 1)
