"""Pixels to probabilities with one bundle on one device."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from retailray.errors import ModelError
from retailray.models.backbones import described
from retailray.models.bundle import Bundle
from retailray.models.embedding import pooled
from retailray.models.inference import fold_batch_norms
from retailray.models.int8 import Int8Pass
from retailray.models.precision import autocast, choose_precision, under_autocast

# images of a forward pass of one thread, beside which others predict: what their layers compute stays in the caches.
# With two such at work on two cores, 64 images at a time are a tenth to a third slower (benchmarks/RESULTS.md); one
# predictor of two threads is as fast with either
ROWS_OF_A_THREAD = 16


INT8 = "int8"  # beside float32 and bfloat16


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


class _Pass(nn.Module):
    """uint8 ``(B, 3, H, W)`` to what enters the head, and logits ``(B, C)``."""

    def __init__(self, normalize: Normalize, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalize, self.body, self.head = normalize, body, head

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(self.normalize(images))
        return features, self.head(features)


def forward_pass(bundle: Bundle) -> _Pass:
    """A bundle's network on the CPU, in eval mode, channels_last, its BatchNorms folded."""
    transform = bundle.meta.transform
    chain = bundle.backbone.blocks(bundle.build())
    body = fold_batch_norms(chain.run(0, len(chain.blocks)))
    network = nn.Sequential(body, copy.deepcopy(chain.head)).eval().to(memory_format=torch.channels_last)
    return _Pass(Normalize(transform.mean, transform.std), *network).eval()


class _Pooled(nn.Module):
    """The same with features that are averaged over positions, ``(B, D)``."""

    def __init__(self, whole: _Pass) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = self.whole(images)
        return features.flatten(2).mean(2) if features.ndim > 2 else features, logits


def pooled_pass(bundle: Bundle) -> nn.Module:
    """:func:`forward_pass` as it is quantised: uint8 ``(B, 3, H, W)`` to features ``(B, D)`` and logits ``(B, C)``."""
    return _Pooled(forward_pass(bundle)).eval()


def _int8_pass(bundle: Bundle, device: torch.device) -> Int8Pass:
    name = f"{bundle.meta.name}/{bundle.meta.version}"
    if bundle.int8 is None:
        raise ModelError(f"{name} has no network in 8-bit integers, and the run has predicted with one")
    if device.type != "cpu":
        raise ModelError(f"{name} has a network in 8-bit integers, which is for CPUs: set cluster.use_gpu to false")
    return Int8Pass(bundle.int8, threads=torch.get_num_threads())


class Predictor:
    """A bundle's :func:`forward_pass` in the precision that is faster here; where it has a network in 8-bit integers,
    which is for CPUs, that one.

    ``rows_at_once``: of a forward pass; 0: a batch as it comes. ``compiled``: its forward pass as inductor has compiled
    it, if it has (:mod:`retailray.models.compiling`).
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", precision: str = "auto") -> None:
        self.device = torch.device(device)
        self.labels = bundle.meta.labels
        self.temperature = bundle.meta.temperature
        transform = bundle.meta.transform
        self.size_px = transform.crop_size
        self.what = f"{described(bundle.backbone)}, prediction"
        self.compiled: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
        self.compiled_rows = self.rows_at_once = 0
        self.eager: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
        if precision == INT8 or (precision == "auto" and bundle.int8):
            self.precision, self.eager = INT8, _int8_pass(bundle, self.device)
            return
        self.eager = own = forward_pass(bundle).to(self.device)
        if self.device.type == "cpu" and torch.get_num_threads() == 1:
            self.rows_at_once = ROWS_OF_A_THREAD
        if precision == "auto":
            passes = under_autocast(nn.Sequential(own.body, own.head), self.device)
            precision = choose_precision(passes, what=self.what, size_px=self.size_px, device=self.device)
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
        """The same, and what enters the head, averaged over positions: float32 ``(B, D)``."""
        batch = torch.from_numpy(np.array(images))  # a copy: Arrow's memory is read-only, which torch does not know
        found = [self._pass(rows) for rows in (batch.split(self.rows_at_once) if self.rows_at_once else [batch])]
        logits, features = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return logits, features

    def _pass(self, batch: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        with autocast(self.device, self.precision):
            features, logits = self._forward(batch)
        return logits.float().cpu().numpy(), pooled(features).numpy()

    @torch.inference_mode()
    def compile(self, rows: int) -> None:
        """Compile the forward pass for batches of this many rows, and run one.

        The weights are constants of it (freezing), which is why it has to happen here: an option of torch.compile by
        that name has no effect.
        """
        options: dict[str, Any] = {"compile_threads": 1}  # no processes besides
        self.compiled, self.compiled_rows = torch.compile(self.eager, dynamic=False, options=options), rows
        with torch._inductor.config.patch(freezing=self.device.type == "cpu"):
            self._pass(torch.zeros(rows, 3, self.size_px, self.size_px, dtype=torch.uint8))

    def _forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        missing = self.compiled_rows - len(batch)
        if self.compiled is None or missing < 0:
            return self.eager(batch)
        if missing:  # of one shape, or torch would compile again
            batch = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])
        features, logits = self.compiled(batch)
        return features[: len(batch) - missing], logits[: len(batch) - missing]
