"""Where a worker's numbers come from: rows of a store, drawn by index, or a Ray Data stream of decoded pixels."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from retailray.data.pipeline import CODE, OURS, PIXELS, pixels_to_numpy
from retailray.data.store import StoreReader, StoreSpec
from retailray.data.transforms import draw_seed, make_augment
from retailray.errors import ERROR_CODES

TARGET = OURS + "target"
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """``rows`` of a store ``(N,)`` with their ``targets`` ``(N,)``: usable ones only, each with a known label."""

    spec: StoreSpec
    rows: np.ndarray
    targets: np.ndarray
    budget: int


@dataclasses.dataclass(frozen=True)
class StreamedRows:
    """A dataset of Ray Train. Failed rows and padding arrive too, without a usable target."""

    name: str
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What the worker itself does to pixels in training; ``source_px`` is the side they arrive with."""

    name: str
    erasing: float
    source_px: int
    crop_px: int


class StoredBatches(Dataset):
    """Batches of a store. The same global batches in the same order, whatever the number of workers.

    Every row once an epoch, in an order drawn from seed and epoch; worker r of w takes every w-th row of a batch. A
    row's view moves on by one from epoch to epoch.
    """

    def __init__(
        self,
        source: StoredRows,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        augmentation: Augmentation | None,
    ) -> None:
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.world = rank, world
        self.reader = StoreReader(source.spec, budget=source.budget)
        self.augment = None
        if augmentation:
            self.augment = make_augment(augmentation.name, augmentation.crop_px, erasing=augmentation.erasing)
        self.first_view = np.random.default_rng(seed).integers(source.spec.num_views, size=len(source.rows))

    @property
    def num_steps(self) -> int:
        return -(-len(self.source.rows) // self.batch_size)

    def epoch(self, epoch: int | None, *, num_workers: int, pin: bool) -> Iterator[Batch]:
        """The local part of every global batch; in the rows' own order where ``epoch`` is None."""
        order = np.arange(len(self.source.rows))
        if epoch is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        local = [(epoch, step[self.rank :: self.world]) for step in steps]
        num_workers = num_workers if self.augment and epoch is not None else 0  # a copy out of the map needs no process
        yield from DataLoader(
            self,
            sampler=local,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin,
            prefetch_factor=4 if num_workers else None,
        )

    def __getitem__(self, item: tuple[int | None, np.ndarray]) -> Batch:
        epoch, indices = item
        # a worker without a row in the last batch still takes part; BatchNorm wants two
        missing = max(0, 2 - len(indices))
        chosen = np.concatenate([indices, np.zeros(missing, np.int64)])
        weight = torch.ones(len(chosen))
        weight[len(indices) :] = 0
        rows = self.source.rows[chosen]
        views = (self.first_view[chosen] + (epoch or 0)) % self.source.spec.num_views
        values = _to_tensor(self.reader.take(rows, views), self.source.spec.dtype)
        if self.augment and epoch is not None:
            values = self.augment(values, [draw_seed(self.seed, epoch, row) for row in rows])
        return values, torch.from_numpy(self.source.targets[chosen]), weight


def _to_tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


class StreamedBatches:
    """Batches of a Ray Data shard; every shard has the same number of rows."""

    def __init__(
        self,
        source: StreamedRows,
        shard: Any,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        augmentation: Augmentation,
    ) -> None:
        self.source, self.shard, self.seed, self.rank = source, shard, seed, rank
        self.local_batch = max(1, -(-batch_size // world))
        self.local_rows = source.num_rows // world
        self.size = augmentation.source_px
        self.augment = make_augment(augmentation.name, augmentation.crop_px, erasing=augmentation.erasing)
        self.codes: dict[str, int] = {}

    @property
    def num_steps(self) -> int:
        return -(-self.local_rows // self.local_batch)

    def epoch(self, epoch: int | None, *, num_workers: int, pin: bool) -> Iterator[Batch]:
        shuffle: dict[str, Any] = {}
        if epoch is not None:
            shuffle = {"local_shuffle_buffer_size": 8 * self.local_batch, "local_shuffle_seed": self.seed + epoch}
        codes: dict[str, int] = {}
        done = 0
        batches = self.shard.iter_batches(
            batch_size=self.local_batch, batch_format="pyarrow", prefetch_batches=2, drop_last=False, **shuffle
        )
        for table in batches:
            for code in table.column(CODE).to_pylist():
                if code in ERROR_CODES:
                    codes[code] = codes.get(code, 0) + 1
            values, target, weight = self._usable(table)
            if self.augment and epoch is not None:
                seeds = [draw_seed(self.seed, epoch, self.rank, done + index) for index in range(len(values))]
                values = self.augment(values, seeds)
            done += len(values)
            yield (values.pin_memory() if pin else values), target, weight
        self.codes = codes

    def _usable(self, table: pa.Table) -> Batch:
        """The rows that can be trained on; where they are fewer than the two that BatchNorm wants, some of weight 0."""
        target = torch.from_numpy(table.column(TARGET).to_numpy().astype(np.int64))
        usable = np.array([not code for code in table.column(CODE).to_pylist()]) & (target.numpy() >= 0)
        rows = np.flatnonzero(usable)
        weight = torch.ones(max(2, len(rows)))
        weight[len(rows) :] = 0
        # mixup and BatchNorm see them: a row that can be trained on, where there is one
        rows = np.concatenate([rows, np.repeat(rows[:1] if len(rows) else [0], max(0, 2 - len(rows)))])
        values = torch.from_numpy(pixels_to_numpy(table.column(PIXELS), self.size)[rows])
        return values, target[rows].clamp(min=0), weight
