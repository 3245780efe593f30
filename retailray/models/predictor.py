"""Pixels to probabilities with one bundle on one device."""

import copy

import numpy as np
import torch
from torch import nn

from retailray.models.blocks import to_blocks
from retailray.models.bundle import Bundle
from retailray.models.embedding import sketch
from retailray.models.inference import fold_batch_norms
from retailray.models.precision import autocast, choose_precision, under_autocast


class Normalize(torch.nn.Module):
    """uint8 ``(B, 3, H, W)`` to float ``(B, 3, H, W)`` on the device of the buffers: (x / 255 - mean) / std."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.mean.device, non_blocking=True)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Predictor:
    """A model in eval mode, channels_last, its BatchNorms folded, in the precision that is faster here."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", precision: str = "auto") -> None:
        self.device = torch.device(device)
        self.labels = bundle.meta.labels
        self.temperature = bundle.meta.temperature
        transform = bundle.meta.transform
        self.normalize = Normalize(transform.mean, transform.std).to(self.device)
        chain = to_blocks(bundle.build())
        body = fold_batch_norms(chain.run(0, len(chain.blocks)))
        network = nn.Sequential(body, copy.deepcopy(chain.head)).eval()
        self.body, self.head = network.to(self.device).to(memory_format=torch.channels_last)
        if precision == "auto":
            what = f"{bundle.meta.arch}, prediction"
            passes = under_autocast(network, self.device)
            precision = choose_precision(passes, what=what, size_px=transform.crop_size, device=self.device)
        self.precision = precision

    def __call__(self, images: np.ndarray, *, calibrated: bool = True) -> np.ndarray:
        """uint8 ``(B, 3, H, W)`` to probabilities, float32 ``(B, num_labels)``."""
        return self.probabilities(self.logits(images), calibrated=calibrated)

    def probabilities(self, logits: np.ndarray, *, calibrated: bool = True) -> np.ndarray:
        """Softmax of logits ``(B, num_labels)``, with the bundle's temperature or without."""
        return torch.softmax(torch.from_numpy(logits) / (self.temperature if calibrated else 1.0), dim=1).numpy()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``(B, 3, H, W)`` to logits, float32 ``(B, num_labels)``."""
        return self.outputs(images)[0]

    @torch.inference_mode()
    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, and their embeddings, float32 ``(B, retailray.models.embedding.SIZE)``."""
        batch = torch.from_numpy(np.array(images))  # a copy: Arrow's memory is read-only, which torch does not know
        with autocast(self.device, self.precision):
            features = self.body(self.normalize(batch))
            logits = self.head(features)
        return logits.float().cpu().numpy(), sketch(features).numpy()
