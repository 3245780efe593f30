"""How a picture becomes the square that a model sees.

``central_square``, which training uses: the square that is kept is scaled in one step, from a JPEG at a reduced scale.
``shorter_side`` and ``stretch`` are what torchvision, timm and transformers do to every picture, for models that were
trained elsewhere: the whole picture at full size is scaled, then cut.
"""

import dataclasses
import math
from typing import cast

import numpy as np
from PIL import Image

CENTRAL_SQUARE, SHORTER_SIDE, STRETCH = RESIZES = ("central_square", "shorter_side", "stretch")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """``resize``: of :data:`RESIZES`, ``interpolation``: of :data:`INTERPOLATIONS`.

    central_square, shorter_side: the shorter side to ``resize_size``; stretch: both sides. Then the central square of
    ``crop_size`` [px]. ``cut``: where half a pixel lies before it, the square begins at the ``nearest`` whole pixel
    (torchvision and timm) or at the one before (``down``: transformers). ``resized_by``: ``pillow``, or
    ``torchvision``, whose arithmetic on tensors differs by a level of 255 here and there (transformers).
    """

    resize_size: int
    crop_size: int
    resize: str = CENTRAL_SQUARE
    interpolation: str = "bilinear"
    cut: str = "nearest"
    resized_by: str = "pillow"


def central_square(image: Image.Image, scaling: Scaling) -> Image.Image:
    """The square, from a picture in RGB of any scale."""
    width, height = image.size
    size = scaling.crop_size
    side = min(width, height) * size / scaling.resize_size  # of the cut square, in source pixels
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), INTERPOLATIONS[scaling.interpolation], box=box)


def cut_of_whole(image: Image.Image, scaling: Scaling) -> Image.Image:
    """As torchvision's Resize and CenterCrop, to the rounding, of a picture in RGB at its full size."""
    wanted, size = (scaling.resize_size, scaling.resize_size), scaling.crop_size
    if scaling.resize == SHORTER_SIDE:
        shorter = min(image.size)
        wanted = cast(tuple[int, int], tuple(int(scaling.resize_size * side / shorter) for side in image.size))
    resize = _resized_by_torchvision if scaling.resized_by == "torchvision" else _resized_by_pillow
    whole_pixel = math.floor if scaling.cut == "down" else round
    left, top = (whole_pixel((side - size) / 2) for side in wanted)
    return resize(image, wanted, scaling.interpolation).crop((left, top, left + size, top + size))


def _resized_by_pillow(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    return image.resize(size, INTERPOLATIONS[interpolation])


def _resized_by_torchvision(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    from torchvision.transforms.v2 import InterpolationMode, functional  # for the models that ask for it alone

    tensor = functional.pil_to_tensor(image).contiguous()
    mode = InterpolationMode("nearest-exact" if interpolation == "nearest" else interpolation)  # Pillow's nearest
    resized = functional.resize(tensor, [size[1], size[0]], mode, antialias=True)
    return Image.fromarray(np.ascontiguousarray(resized.permute(1, 2, 0).numpy()))
