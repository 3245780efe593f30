"""The workers of one fit, as the training loop sees them."""

import dataclasses
from typing import TypeVar

import torch
import torch.distributed

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class DistributedContext:
    """The workers of one fit: this one's rank, how many there are, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all workers, on the device."""
        values = values.to(self.device)
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every worker's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: T) -> list[T]:
        """Every worker's value, in order of rank, for rank 0; the others get their own."""
        if self.size == 1:
            return [value]
        values: list[T] | None = [value] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values if values is not None else [value]
