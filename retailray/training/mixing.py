"""Mixup and cutmix: torchvision's, and mixup also of features."""

from typing import Literal

import torch
from torch import nn

from retailray.config import TrainSection
from retailray.interrupts import importing


class Mixing:
    """What ``train.mixup`` and ``train.cutmix`` ask for; nothing where they are 0.

    Mixup takes whatever enters the trained blocks (manifold mixup, arXiv 1806.05236), cutmix takes pixels.
    """

    def __init__(self, train: TrainSection, num_classes: int, num_cached_blocks: int) -> None:
        self._mixup: nn.Module | None = None
        self._cutmix: nn.Module | None = None
        if not train.mixup and not train.cutmix:
            return
        with importing():
            from torchvision.transforms import v2

        if train.mixup:
            self._mixup = v2.MixUp(alpha=train.mixup, num_classes=num_classes)
        if train.cutmix:
            assert num_cached_blocks == 0, "cutmix mixes pixels"
            self._cutmix = v2.CutMix(alpha=train.cutmix, num_classes=num_classes)

    def draw(self) -> Literal["mixup", "cutmix"] | None:
        """What the next batch gets: of both, either with equal probability."""
        if self._cutmix and (not self._mixup or bool(torch.rand(()) < 0.5)):
            return "cutmix"
        return "mixup" if self._mixup else None

    def images(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cutmix: ``(B, 3, H, W)`` and targets int64 ``(B,)`` to the same shape and shares of labels ``(B, C)``."""
        assert self._cutmix
        return self._cutmix(images, target)

    def features(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixup: the same for images, features or tokens; they take the form ``(B, C, H, W)`` for it."""
        assert self._mixup
        mixed, soft = self._mixup(inputs.reshape(len(inputs), -1, 1, 1) if inputs.ndim != 4 else inputs, target)
        return mixed.reshape(inputs.shape), soft
