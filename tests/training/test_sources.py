"""Batches of a store: every row once, the same global batches for any number of workers, views in turn."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.data import store
from retailray.data.pipeline import CODE, PIXELS, pixels_to_arrow
from retailray.data.store import StoreSpec
from retailray.training.sources import TARGET, Augmentation, StoredBatches, StoredRows, StreamedBatches, StreamedRows

NUM_ROWS, NUM_VIEWS = 23, 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Pixels whose first value is the row and whose second is the view."""
    root = tmp_path_factory.mktemp("store")
    spec = StoreSpec(str(root), "0" * 32, NUM_ROWS, NUM_VIEWS, (3, 8, 8), "uint8")
    store.create(spec)
    values = np.zeros((NUM_ROWS * NUM_VIEWS, 3, 8, 8), np.uint8)
    values[:, 0, 0, 0] = np.repeat(np.arange(NUM_ROWS), NUM_VIEWS)
    values[:, 0, 0, 1] = np.tile(np.arange(NUM_VIEWS), NUM_ROWS)
    store.write_rows(spec, np.arange(len(values)), values)
    store.finish(spec, pa.table({"error_code": [""] * NUM_ROWS, "message": [""] * NUM_ROWS}))
    return spec


def open_batches(spec, *, rows=None, batch_size=5, seed=0, rank=0, world=1, augmentation=None):
    rows = np.arange(NUM_ROWS) if rows is None else rows
    source = StoredRows(spec, rows, rows % 4, 10**9)
    return StoredBatches(source, batch_size=batch_size, seed=seed, rank=rank, world=world, augmentation=augmentation)


def epoch_of(batches, epoch, num_workers=0):
    return list(batches.epoch(epoch, num_workers=num_workers, pin=False))


def used(batch):
    values, target, weight = batch
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
        assert all(len(share[step][0]) >= 2 for share in shares), "BatchNorm wants two"
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


@pytest.mark.parametrize(("codes", "rows", "weights"), [
    (["corrupt", "", "timeout"], [1, 1], [1, 0]),
    (["", "corrupt", ""], [0, 2], [1, 1]),
    (["corrupt", "corrupt", "corrupt"], [0, 0], [0, 0]),
])  # fmt: skip
def test_a_streamed_batch_is_filled_up_with_a_row_that_can_be_trained_on(codes, rows, weights):
    """Mixup mixes it into the others, and BatchNorm sees it, whatever its weight."""
    pixels = np.stack([np.full((3, 8, 8), number, np.uint8) for number in range(3)])
    targets = pa.array([-1 if code else number for number, code in enumerate(codes)], pa.int32())
    table = pa.table({CODE: codes, TARGET: targets, PIXELS: pixels_to_arrow(pixels)})
    plain = Augmentation("none", 0.0, 8, 8)
    batches = StreamedBatches(StreamedRows("train", 3), None, batch_size=3, seed=0, rank=0, world=1, augmentation=plain)
    values, target, weight = batches._usable(table)
    assert values[:, 0, 0, 0].tolist() == rows
    assert weight.tolist() == weights
    assert target.tolist() == [0 if codes[row] else row for row in rows]
