"""Where a worker's numbers come from: rows of a store, drawn by index, or a stream of decoded pixels."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from retailray.config import TrainSection
from retailray.data.decoding import CODE, PADDING, PIXELS, pixels_to_numpy
from retailray.data.row_ids import COLUMN_PREFIX, ROW_ID
from retailray.data.transforms import draw_seed, make_augment
from retailray.errors import ERROR_CODES
from retailray.execution import Shard
from retailray.execution.distributed import DistributedContext
from retailray.training.cache.store import CacheReader, CacheSpec

TARGET = COLUMN_PREFIX + "target"
# values ``(B, ...)``, targets int64 ``(B,)``, weights float ``(B,)`` (0: the row only fills up), row ids int64 ``(B,)``
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class CachedDataset:
    """``rows`` of a store ``(N,)`` with their ``targets`` and ``row_ids`` ``(N,)``: usable ones only, each with a known
    label."""

    spec: CacheSpec
    rows: np.ndarray
    targets: np.ndarray
    row_ids: np.ndarray
    budget: int


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A stream of the fit. Failed rows and padding arrive too, without a usable target."""

    name: str
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What the worker itself does to pixels in training; ``source_px`` is the side they arrive with."""

    name: str
    random_erasing_prob: float
    source_px: int
    crop_px: int


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows become batches, and which of them are this worker's. ``min_rows``: of one worker in a step; 0: any."""

    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    min_rows: int = 0


def make_batching(split: str, train: TrainSection, world: DistributedContext, *, min_rows: int) -> Batching:
    """Of ``train`` in batches of ``train.batch_size``, where each worker has ``min_rows`` of its own.

    Of other splits in the same, or, where that is less, in what the workers together take in one forward pass.
    """
    size = train.batch_size
    if split != "train" and train.device_batch_size:
        size = min(size, train.device_batch_size * world.size)
    return Batching(size, train.seed, world.rank, world.size, min_rows if split == "train" else 0)


def num_steps(num_rows: int, batch_size: int, world: int, min_rows: int) -> int:
    """How many steps an epoch has, if batches are as even as can be and none gives a worker fewer than ``min_rows``."""
    steps = -(-num_rows // batch_size)
    return max(1, min(steps, num_rows // (min_rows * world))) if min_rows else steps


class StoredBatches(Dataset):
    """Batches of a store. The same global batches in the same order, whatever the number of workers.

    Every row once per epoch, in an order drawn from seed and epoch; worker r of w takes every w-th row of a batch. A
    row's view moves on by one from epoch to epoch. Batches of an epoch that trains differ by one row at most, so that
    none is left with a few rows.
    """

    def __init__(self, source: CachedDataset, batching: Batching, augmentation: Augmentation | None) -> None:
        self.source, self.batching, self.seed = source, batching, batching.seed
        self.reader = CacheReader(source.spec, budget=source.budget)
        self.loaders: dict[int, DataLoader[Batch]] = {}  # by their number of processes, which live as long as this does
        self.augment = None
        if augmentation:
            self.augment = make_augment(
                augmentation.name, augmentation.crop_px, random_erasing_prob=augmentation.random_erasing_prob
            )
        self.first_view = np.random.default_rng(self.seed).integers(source.spec.num_views, size=len(source.rows))

    @property
    def num_rows(self) -> int:
        return len(self.source.rows)

    @property
    def num_steps(self) -> int:
        return num_steps(len(self.source.rows), self.batching.batch_size, self.batching.world, self.batching.min_rows)

    def epoch(self, epoch: int | None, *, num_workers: int, pin: bool) -> Iterator[Batch]:
        """The local part of every global batch; in the rows' own order where ``epoch`` is None."""
        order = np.arange(len(self.source.rows))
        if epoch is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        steps = np.array_split(order, self.num_steps) if len(order) else []
        local = [(epoch, step[self.batching.rank :: self.batching.world]) for step in steps]
        num_workers = num_workers if self.augment and epoch is not None else 0  # a copy out of the map needs no process
        if num_workers not in self.loaders:
            self.loaders[num_workers] = _make_loader(self, num_workers, pin)
        loader = self.loaders[num_workers]
        cast(_Order, loader.sampler).items = local
        yield from loader

    def __getitem__(self, item: tuple[int | None, np.ndarray]) -> Batch:
        epoch, indices = item
        # every worker takes part in every step; only where nothing is trained can one be without a row
        missing = max(0, 1 - len(indices))
        chosen = np.concatenate([indices, np.zeros(missing, np.int64)])
        weight = torch.ones(len(chosen))
        weight[len(indices) :] = 0
        rows = self.source.rows[chosen]
        views = (self.first_view[chosen] + (epoch or 0)) % self.source.spec.num_views
        values = _to_tensor(self.reader.take(rows, views), self.source.spec.dtype)
        if self.augment and epoch is not None:
            values = self.augment(values, [draw_seed(self.seed, epoch, row) for row in rows])
        return (
            values,
            torch.from_numpy(self.source.targets[chosen]),
            weight,
            torch.from_numpy(self.source.row_ids[chosen]),
        )


class _Order(Sampler[Any]):
    """What a loader loads next: another epoch's items in place of the last one's."""

    def __init__(self) -> None:
        self.items: list[tuple[int | None, np.ndarray]] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _make_loader(batches: StoredBatches, num_workers: int, pin: bool) -> "DataLoader[Batch]":
    source = copy.copy(batches)
    source.loaders = {}  # or the two would hold each other, and processes would outlive them
    return DataLoader(
        source,
        sampler=_Order(),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=num_workers > 0,
        # processes draw a seed where they begin, which is not in every epoch: torch's own is for mixing and dropout
        generator=torch.Generator() if num_workers else None,
    )


def _to_tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


class StreamedBatches:
    """Batches of a stream's shard; every shard has the same number of rows, and every worker the same number of steps.

    Rows that failed are left out, and those after them move up: where rows fail, it is the last steps that are short.
    A step without a row has one of weight 0, since every worker takes part in every step.
    """

    def __init__(self, source: StreamedDataset, shard: Shard, batching: Batching, augmentation: Augmentation) -> None:
        self.source, self.shard, self.seed, self.rank = source, shard, batching.seed, batching.rank
        self.num_rows = source.num_rows
        self.local_rows = source.num_rows // batching.world
        self.local_batch = max(1, -(-batching.batch_size // batching.world))
        self.num_steps = num_steps(self.local_rows, self.local_batch, 1, batching.min_rows)
        self.size = augmentation.source_px
        self.augment = make_augment(
            augmentation.name, augmentation.crop_px, random_erasing_prob=augmentation.random_erasing_prob
        )
        self.codes: dict[str, int] = {}

    def epoch(self, epoch: int | None, *, num_workers: int, pin: bool) -> Iterator[Batch]:
        shuffle = {"shuffle_rows": 8 * self.local_batch, "seed": self.seed + epoch} if epoch is not None else {}
        tables = self.shard.batches(self.local_batch, **shuffle)
        done = 0
        for table in self._steps(tables):
            values, target, weight, row_ids = self._batch(table)
            if self.augment and epoch is not None:
                seeds = [draw_seed(self.seed, epoch, self.rank, done + index) for index in range(len(values))]
                values = self.augment(values, seeds)
            done += len(values)
            yield (values.pin_memory() if pin else values), target, weight, row_ids

    def _steps(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Rows that can be used, in as many tables as there are steps; counts the codes of the others."""
        sizes = [len(part) for part in np.array_split(np.arange(self.local_rows), self.num_steps)]
        codes: Counter[str] = Counter()
        spare: pa.Table | None = None  # for steps without a row
        held: list[pa.Table] = []
        for table in tables:
            found = table.column(CODE).to_pylist()
            codes.update(code for code in found if code in ERROR_CODES)
            usable = np.array([not code for code in found]) & (table.column(TARGET).to_numpy() >= 0)
            spare = table.slice(0, 1) if spare is None else spare
            held.append(table.filter(pa.array(usable)))
            while len(sizes) > 1 and sum(part.num_rows for part in held) >= sizes[0]:
                together = pa.concat_tables(held)
                yield together.slice(0, sizes[0])
                held = [together.slice(sizes.pop(0))]
        self.codes = dict(codes)
        rest = pa.concat_tables(held) if held else None
        for size in sizes:
            if rest is not None and rest.num_rows:
                yield rest.slice(0, size)
                rest = rest.slice(size)
            elif spare is not None:
                yield spare.set_column(spare.column_names.index(CODE), CODE, pa.array([PADDING]))

    def _batch(self, table: pa.Table) -> Batch:
        target = torch.from_numpy(table.column(TARGET).to_numpy().astype(np.int64)).clamp(min=0)
        weight = torch.tensor([float(code != PADDING) for code in table.column(CODE).to_pylist()])
        values = torch.from_numpy(np.array(pixels_to_numpy(table.column(PIXELS), self.size)))
        return values, target, weight, torch.from_numpy(table.column(ROW_ID).to_numpy().astype(np.int64))
