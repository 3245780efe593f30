"""A model where it runs: from a batch of pixels, or of activations that are kept, to logits."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import safetensors.torch
import torch
from torch import nn

from retailray.execution import Reference
from retailray.execution.distributed import DistributedContext
from retailray.models.backbones import Backbone, load_state
from retailray.models.precision import autocast
from retailray.models.predictor import Normalize

T = TypeVar("T")

LOADER_WORKERS = 8  # processes that read and augment beside a GPU, at most


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What every process builds its model from. ``state_ref``: weights as safetensors bytes."""

    backbone: Backbone
    num_classes: int
    image_size: int
    state_ref: Reference
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str

    def build(self) -> nn.Module:
        """A new model with these weights."""
        model = self.backbone.build(self.num_classes, image_size=self.image_size)
        load_state(model, safetensors.torch.load(self.state_ref.get()))
        return model


class Batches(Protocol):
    """One split's batches. An epoch yields values, targets ``(B,)``, weights ``(B,)`` and row ids ``(B,)``."""

    @property
    def num_rows(self) -> int:
        """Of all workers; rows that fail are among them."""

    @property
    def num_steps(self) -> int: ...

    def epoch(self, epoch: int | None, *, num_workers: int, pin: bool) -> Iterator[tuple[torch.Tensor, ...]]:
        """``epoch``: its number, from 1, which draws the order; None: in order. ``num_workers``: loader processes."""


class Network:
    """A model on a worker's device, in the precision that was measured for it.

    Args:
        model: moved to the device.
        threads: of this worker; beside a GPU, as many processes read its batches, up to :data:`LOADER_WORKERS`.
    """

    def __init__(self, model: nn.Module, spec: NetworkSpec, world: DistributedContext, *, threads: int = 0) -> None:
        self.world, self.device = world, world.device
        self.loader_workers = min(LOADER_WORKERS, threads) if world.device.type == "cuda" else 0
        self.precision, self.num_classes = spec.precision, spec.num_classes
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.chain = spec.backbone.blocks(self.model)
        self.normalize = Normalize(spec.mean, spec.std).to(self.device)

    def batches(self, batches: Batches, epoch: int | None) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """How many rows of weight, counted where it costs no wait for a GPU, and the batch on the device."""
        pin = self.device.type == "cuda"
        for batch in batches.epoch(epoch, num_workers=self.loader_workers, pin=pin):
            yield int((batch[2] > 0).sum()), tuple(part.to(self.device, non_blocking=True) for part in batch)

    def enter_blocks(self, values: torch.Tensor, num_cached_blocks: int) -> torch.Tensor:
        """Pixels are normalised; kept activations are taken as they are, in the precision of the pass."""
        if num_cached_blocks == 0:
            return self.normalize(values)
        values = values.float() if self.precision == "float32" else values
        return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values

    def forward(self, values: torch.Tensor, num_cached_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the head, and logits, float ``(B, C)``."""
        with autocast(self.device, self.precision):
            blocks = self.chain.run(num_cached_blocks, len(self.chain.blocks))
            features = blocks(self.enter_blocks(values, num_cached_blocks))
            return features, self.chain.head(features).float()

    def named(self, part: nn.Module) -> dict[str, torch.Tensor]:
        """Copies of the tensors of a part of the model, on the CPU, under the model's own names."""
        names = {id(tensor): name for name, tensor in self.model.state_dict(keep_vars=True).items()}
        return {names[id(tensor)]: tensor.detach().cpu().clone() for tensor in part.state_dict(keep_vars=True).values()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the values of some of the model's tensors."""
        target = self.model.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                target[name].copy_(value)


class TimedIterator(Generic[T]):
    """What an iterator yields, and the ``seconds`` in which it was waited for."""

    def __init__(self, items: Iterator[T]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        asked = time.monotonic()
        try:
            return next(self.items)
        finally:
            self.seconds += time.monotonic() - asked
