"""What training does to pixels beyond what scoring does: named presets of torchvision transforms."""

import hashlib
import threading
from collections.abc import Callable, Sequence

import torch

from retailray.interrupts import importing

Augment = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
WHITE, GREY = 255, 127
_DRAWING = threading.Lock()  # torchvision draws from torch's one generator; threads would take each other's numbers


def _article(size_px: int) -> list[Callable]:
    from torchvision.transforms import v2

    # the origin article's: rotation 0.5 degrees, shifts of 0.3, Keras' shear of 0.2 (degrees), flip
    return [
        v2.RandomAffine(degrees=0.5, translate=(0.3, 0.3), shear=0.2, fill=WHITE),
        v2.RandomHorizontalFlip(),
        v2.CenterCrop(size_px),
    ]


def _standard(size_px: int) -> list[Callable]:
    from torchvision.transforms import v2

    # milder than ImageNet's 8 % crops: a product fills its picture, and a corner of it is no longer that product
    return [
        v2.RandomResizedCrop(size_px, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]


AUGMENTS: dict[str, Callable[[int], list[Callable]]] = {"article": _article, "standard": _standard}


def make_augment(name: str, size_px: int, *, random_erasing_prob: float = 0.0) -> Augment | None:
    """uint8 ``(B, 3, R, R)`` and B seeds to ``(B, 3, size_px, size_px)``; None where nothing would change.

    What happens to an image depends on its seed alone: not on its neighbours, the worker or the epoch's order.
    ``random_erasing_prob``: probability that a rectangle of an image is blanked (Zhong et al. 2017, arXiv 1708.04896).
    """
    if name == "none" and not random_erasing_prob:
        return None
    with importing():  # it takes as long as torch itself, and scoring with a model of our own has no use for it
        from torchvision.transforms import v2

    steps = AUGMENTS[name](size_px) if name != "none" else []
    if random_erasing_prob:
        steps.append(v2.RandomErasing(p=random_erasing_prob, scale=(0.02, 0.2), value=GREY))
    one = v2.Compose(steps)

    def augment(images: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        results = []
        with _DRAWING, torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                results.append(one(image))
        return torch.stack(results)

    return augment


def draw_seed(*parts: object) -> int:
    """A seed (63 bits) that depends on nothing but its arguments."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
