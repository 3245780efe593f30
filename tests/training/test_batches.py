"""Batches of a store: every row once, the same global batches for any number of workers, views in turn."""

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.data.decoding import CODE, PIXELS, pixels_to_arrow
from retailray.data.row_ids import ROW_ID
from retailray.errors import ConfigError
from retailray.training.batches import (
    TARGET,
    Augmentation,
    Batching,
    CachedDataset,
    StoredBatches,
    StreamedBatches,
    StreamedDataset,
    num_steps,
)
from retailray.training.cache import store
from retailray.training.cache.store import CacheSpec
from retailray.training.phases import ResolvedPhase, check_batch_size

NUM_ROWS, NUM_VIEWS = 23, 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Pixels whose first value is the row and whose second is the view."""
    root = tmp_path_factory.mktemp("store")
    spec = CacheSpec(str(root), "0" * 32, NUM_ROWS, NUM_VIEWS, (3, 8, 8), "uint8")
    store.create(spec)
    values = np.zeros((NUM_ROWS * NUM_VIEWS, 3, 8, 8), np.uint8)
    values[:, 0, 0, 0] = np.repeat(np.arange(NUM_ROWS), NUM_VIEWS)
    values[:, 0, 0, 1] = np.tile(np.arange(NUM_VIEWS), NUM_ROWS)
    store.write_rows(spec, np.arange(len(values)), values)
    store.finish(spec, pa.table({"error_code": [""] * NUM_ROWS, "message": [""] * NUM_ROWS}))
    return spec


def open_batches(spec, *, rows=None, batch_size=5, seed=0, rank=0, world=1, augmentation=None, min_rows=0):
    rows = np.arange(NUM_ROWS) if rows is None else rows
    source = CachedDataset(spec, rows, rows % 4, rows + 1000, 10**9)
    return StoredBatches(source, Batching(batch_size, seed, rank, world, min_rows), augmentation)


def epoch_of(batches, epoch, num_workers=0):
    return list(batches.epoch(epoch, num_workers=num_workers, pin=False))


def used(batch):
    values, target, weight, row_ids = batch
    assert (row_ids == values[:, 0, 0, 0].long() + 1000).all() or values.shape[-1] != 8
    return values[weight > 0], target[weight > 0]


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, NUM_ROWS),
    batch_size=st.integers(1, 30),
    world=st.integers(1, 5),
    epoch=st.one_of(st.none(), st.integers(1, 9)),
)
def test_every_row_once_and_the_same_global_batches_on_any_number_of_workers(spec, num_rows, batch_size, world, epoch):
    rows = np.random.default_rng(0).permutation(NUM_ROWS)[:num_rows]
    alone = epoch_of(open_batches(spec, rows=rows, batch_size=batch_size), epoch)
    shares = [
        epoch_of(open_batches(spec, rows=rows, batch_size=batch_size, rank=rank, world=world), epoch)
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(alone)} == {-(-num_rows // batch_size)}
    seen = []
    for step, whole in enumerate(alone):
        together = torch.cat([used(share[step])[0] for share in shares])
        key = lambda values: sorted(map(tuple, values[:, 0, 0, :2].tolist()))  # noqa: E731
        assert key(together) == key(used(whole)[0])
        assert all(len(share[step][0]) >= 1 for share in shares), "every worker takes part in every step"
        seen += used(whole)[0][:, 0, 0, 0].tolist()
        assert (used(whole)[1] == used(whole)[0][:, 0, 0, 0].long() % 4).all()
    assert sorted(seen) == sorted(rows.tolist())


def test_epochs_differ_and_repeat_and_views_take_turns(spec):
    batches = open_batches(spec)
    orders, views = [], {row: set() for row in range(NUM_ROWS)}
    for epoch in range(1, NUM_VIEWS + 1):
        values = torch.cat([used(batch)[0] for batch in epoch_of(batches, epoch)])
        orders.append(values[:, 0, 0, 0].tolist())
        for row, view in values[:, 0, 0, :2].tolist():
            views[row].add(view)
    assert orders[0] != orders[1] != orders[2]
    assert all(seen == set(range(NUM_VIEWS)) for seen in views.values())
    again = torch.cat([used(batch)[0] for batch in epoch_of(open_batches(spec), 1)])
    assert again[:, 0, 0, 0].tolist() == orders[0]
    assert epoch_of(open_batches(spec, seed=1), 1)[0][0][:, 0, 0, 0].tolist() != orders[0][:5]


def test_pixels_are_augmented_alike_by_processes_and_by_workers(spec):
    """What happens to a row depends on seed, epoch and row: not on who does it."""
    augmentation = Augmentation("standard", 0.0, 8, 6)
    here = epoch_of(open_batches(spec, augmentation=augmentation), 1)
    forked = epoch_of(open_batches(spec, augmentation=augmentation), 1, num_workers=2)
    assert all(torch.equal(left[0], right[0]) for left, right in zip(here, forked, strict=True))
    assert here[0][0].shape == (5, 3, 6, 6)
    half = [epoch_of(open_batches(spec, augmentation=augmentation, rank=rank, world=2), 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([used(half[0])[0], used(half[1])[0]]), here[0][0][[0, 2, 4, 1, 3]])


def test_loader_processes_live_from_epoch_to_epoch_and_end_with_the_batches(spec):
    """Kind of fault: every epoch starts processes anew, or the last ones stay."""
    batches = open_batches(spec, augmentation=Augmentation("standard", 0.0, 8, 6))
    others = set(psutil.Process().children())
    children = []
    for epoch in (1, 2):
        assert len(epoch_of(batches, epoch, num_workers=2)) == batches.num_steps
        children.append(set(psutil.Process().children()) - others)
    assert children[0] == children[1]
    assert len(children[0]) == 2
    expected = epoch_of(open_batches(spec, augmentation=Augmentation("standard", 0.0, 8, 6)), 2)
    found = epoch_of(batches, 2, num_workers=2)
    assert all(torch.equal(left[0], right[0]) for left, right in zip(found, expected, strict=True))
    del batches
    assert psutil.wait_procs(children[0], timeout=5)[1] == []


@settings(max_examples=100, deadline=None)
@given(
    num_rows=st.integers(1, 2000),
    batch_size=st.integers(1, 300),
    world=st.integers(1, 16),
    min_rows=st.sampled_from([1, 8]),
)
def test_no_step_of_training_leaves_a_worker_with_too_few_rows(num_rows, batch_size, world, min_rows):
    """Kind of fault: the last batch of an epoch is a few rows, or none for some workers, and padding takes their place.

    What cannot be divided is refused before (:func:`retailray.training.phases.check_batch_size`).
    """
    if batch_size < min_rows * world or num_rows < min_rows * world:
        with pytest.raises(ConfigError, match=r"per worker and step|for each of"):
            check_batch_size(
                [ResolvedPhase(1, "all", 0, 0, 1, 1, trains_batch_norm=min_rows > 1)],
                batch_sizes=[batch_size],
                num_workers=world,
                num_rows=num_rows,
            )
        return
    steps = num_steps(num_rows, batch_size, world, min_rows)
    parts = np.array_split(np.arange(num_rows), steps)
    shares = [len(part[rank::world]) for part in parts for rank in range(world)]
    assert sum(shares) == num_rows
    assert min(shares) >= min_rows
    assert max(map(len, parts)) <= max(batch_size, 2 * min_rows * world), "batches are hardly larger than asked"


def test_a_worker_trains_on_no_padding(spec):
    batches = [open_batches(spec, batch_size=8, rank=rank, world=2, min_rows=1) for rank in range(2)]
    for share in batches:
        assert all((weight == 1).all() for _, _, weight, _ in epoch_of(share, 1))
    assert sum(len(batch[0]) for share in batches for batch in epoch_of(share, 1)) == NUM_ROWS


class Shard:
    """Tables as a worker's shard gives them."""

    def __init__(self, tables):
        self.tables = tables

    def batches(self, rows, **options):
        return iter(self.tables)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.sampled_from(["", "", "", "corrupt", "padding"]), min_size=1, max_size=60),
    batch=st.integers(1, 20),
)
def test_rows_of_a_stream_that_failed_are_left_out_and_every_step_is_taken(codes, batch):
    """Kind of fault: a failed row, or one that fills up, takes the place of a row in training."""
    pixels = np.stack([np.full((3, 8, 8), number, np.uint8) for number in range(len(codes))])
    targets = pa.array([-1 if code else number % 3 for number, code in enumerate(codes)], pa.int32())
    numbers = pa.array(np.arange(len(codes)))
    table = pa.table({CODE: codes, TARGET: targets, PIXELS: pixels_to_arrow(pixels), ROW_ID: numbers})
    shard = Shard([table.slice(start, batch) for start in range(0, len(codes), batch)])
    plain = Augmentation("none", 0.0, 8, 8)
    batches = StreamedBatches(
        StreamedDataset("train", len(codes)),
        shard,
        Batching(batch, seed=0, min_rows=1),
        plain,
    )
    found = list(batches.epoch(None, num_workers=0, pin=False))
    assert len(found) == batches.num_steps
    seen = [int(row) for values, _, weight, _ in found for row in values[weight > 0][:, 0, 0, 0]]
    good = [number for number, code in enumerate(codes) if not code]
    assert seen == good
    assert [int(row) for _, _, weight, rows in found for row in rows[weight > 0]] == good
    assert all(len(weight) == 1 for _, _, weight, _ in found if not weight.any()), "one row of weight 0, and no copies"
    assert sum(batches.codes.values()) == codes.count("corrupt")
