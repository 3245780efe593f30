"""What training does to pixels beyond what scoring does: named presets of torchvision transforms."""

from collections.abc import Callable

import torch
from torchvision.transforms import v2

Augment = Callable[[torch.Tensor], torch.Tensor]
WHITE = 255


def _article(size_px: int) -> list[Callable]:
    # the origin article's: rotation 0.5 degrees, shifts of 0.3, Keras' shear of 0.2 (degrees), flip
    return [
        v2.RandomAffine(degrees=0.5, translate=(0.3, 0.3), shear=0.2, fill=WHITE),
        v2.RandomHorizontalFlip(),
        v2.CenterCrop(size_px),
    ]


def _standard(size_px: int) -> list[Callable]:
    # milder than ImageNet's 8 % crops: a product fills its picture, and a corner of it is no longer that product
    return [
        v2.RandomResizedCrop(size_px, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]


AUGMENTS: dict[str, Callable[[int], list[Callable]]] = {"article": _article, "standard": _standard}


def make_augment(name: str, size_px: int) -> Augment | None:
    """uint8 ``(B, 3, R, R)`` to ``(B, 3, size_px, size_px)``, each image with draws of its own; None for ``none``."""
    if name == "none":
        return None
    one = v2.Compose(AUGMENTS[name](size_px))
    return lambda images: torch.stack([one(image) for image in images])
