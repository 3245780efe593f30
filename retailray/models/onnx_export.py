"""A bundle as an ONNX file: from decoded pictures to calibrated probabilities, without our code.

Resizing, cutting and normalising are part of the graph, as float arithmetic: Pillow, which the predictor decodes with,
rounds to whole levels of 255 after each of its two passes, so probabilities agree to some thousandths.
"""

import json
import logging
import warnings
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from retailray.data.scaling import CENTRAL_SQUARE, STRETCH, Scaling
from retailray.errors import ModelError
from retailray.models.bundle import Bundle
from retailray.models.predictor import Normalize

OPSET = 18
CLOSE = 1e-3  # of probabilities, between the graph in ONNX Runtime and in torch
EXAMPLES = ((1, 300, 400), (2, 517, 333), (1, 224, 1000), (3, 90, 61))  # pictures, height and width [px], to compare on


class Resize(nn.Module):
    """Float ``(B, 3, H, W)`` to ``(B, 3, crop_size, crop_size)`` in two matrix products with the filters of Pillow."""

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling
        if scaling.interpolation not in KERNELS:
            raise ModelError(
                f"export: pictures are resized by {scaling.interpolation}; only {' and '.join(KERNELS)} can be "
                "expressed in the graph"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2], images.shape[-1]
        shorter = cast(int, torch.sym_min(height, width))  # a symbol where the graph is traced
        rows, columns = self._filters(height, shorter, images), self._filters(width, shorter, images)
        # Pillow's first pass is along the rows, and each ends with levels of 0 to 255
        return (rows @ (images @ columns.T).clamp(0, 255)).clamp(0, 255)

    def _filters(self, length: int, shorter: int, like: torch.Tensor) -> torch.Tensor:
        """``(crop_size, length)``: what each source pixel contributes to each pixel of the cut."""
        scaling = self.scaling
        source = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
        target = torch.arange(scaling.crop_size, dtype=like.dtype, device=like.device) + 0.5
        one = torch.ones_like(source[:1])
        if scaling.resize == CENTRAL_SQUARE:
            scale = one * shorter / scaling.resize_size  # source pixels for one of the target
            centre = one * length / 2 + (target - scaling.crop_size / 2) * scale
        else:
            size: int = scaling.resize_size
            scaled = one * (size if scaling.resize == STRETCH else size * length // shorter)
            before = (scaled - scaling.crop_size) / 2
            scale = one * length / scaled
            centre = (target + (torch.floor(before) if scaling.cut == "down" else torch.round(before))) * scale
        distance = (source[None] - centre[:, None]).abs() / torch.clamp(scale, min=1.0)
        weights = KERNELS[scaling.interpolation](distance)
        return weights / weights.sum(1, keepdim=True)


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return torch.clamp(1 - distance, min=0.0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


class Served(nn.Module):
    """uint8 ``(B, H, W, 3)``, RGB pictures of one size, to calibrated probabilities, float32 ``(B, num_labels)``."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        transform = bundle.meta.transform
        self.resize = Resize(transform.scaling)
        self.normalize = Normalize(transform.mean, transform.std)
        self.network, self.temperature = bundle.build(), bundle.meta.temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        square = self.resize(images.permute(0, 3, 1, 2).float())
        return torch.softmax(self.network(self.normalize(square)) / self.temperature, dim=1)


def to_onnx(bundle: Bundle) -> bytes:
    """The file's bytes; ``labels`` (JSON, in the order of the probabilities), name and version are in its metadata.

    Raises:
        ModelError: packages are missing, or the network cannot be expressed.
    """
    onnx = _packages()
    served = Served(bundle).eval()
    example = torch.zeros(2, 300, 400, 3, dtype=torch.uint8)
    dimensions = {0: "batch", 1: "height", 2: "width"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                served,
                (example,),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=(dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever a network's own code raises where it is traced
        first = str(error).strip().splitlines()
        raise ModelError(f"{bundle.meta.arch} cannot be written as ONNX: {first[0] if first else error!r}") from error
    model = program.model_proto  # type: ignore[union-attr]  # there is a program where it did not raise
    facts = {"labels": json.dumps(bundle.meta.labels), "name": bundle.meta.name, "version": bundle.meta.version}
    onnx.helper.set_model_props(model, facts)
    try:
        return model.SerializeToString()
    except Exception as error:  # protobuf's limit of 2 GB
        raise ModelError(f"{bundle.meta.arch} cannot be written as one ONNX file: {error}") from error


def _packages() -> Any:
    """The ``onnx`` package; ONNX Runtime and onnxscript are there too."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        way = "pip install 'retailray[onnx]'"
        raise ModelError(f"export needs packages that are not installed: {way} ({error})") from error
    return onnx


def largest_difference(data: bytes, bundle: Bundle) -> float:
    """Between probabilities of ONNX Runtime and of torch, over random pictures of several sizes.

    Raises:
        ModelError: packages are missing.
    """
    _packages()
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    served, random = Served(bundle).eval(), np.random.default_rng(0)
    differences = []
    for shape in EXAMPLES:
        images = random.integers(0, 256, (*shape, 3), np.uint8)
        [found] = session.run(None, {"images": images})
        with torch.inference_mode():
            differences.append(float(np.abs(found - served(torch.from_numpy(images)).numpy()).max()))
    return float(np.max(differences))  # NaN where one is
