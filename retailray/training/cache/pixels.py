"""Pixels written to stores: what runs in tasks that need no network, in a module of its own without torch, whose import
would take longer than most of these tasks."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.data.decoding import CODE, COLUMN_PREFIX, MESSAGE, PIXELS, SLOT, VIEW, pixels_to_numpy
from retailray.execution import Reporter
from retailray.training.cache import store
from retailray.training.cache.store import CacheSpec

JOB = COLUMN_PREFIX + "job"  # which job a row belongs to


def positions_of(table: pa.Table, num_views: int) -> np.ndarray:
    return table.column(SLOT).to_numpy() * num_views + table.column(VIEW).to_numpy()


def outcome_of(table: pa.Table, reporter: Reporter) -> pa.Table:
    reporter.step(table.num_rows)
    return table.filter(pc.equal(table.column(VIEW), 0)).select([JOB, SLOT, CODE, MESSAGE])


def write_pixels(table: pa.Table, *, specs: list[CacheSpec], sizes: list[int], reporter: Reporter) -> pa.Table:
    number = table.column(JOB)[0].as_py()
    values = pixels_to_numpy(table.column(PIXELS), sizes[number])
    store.write_rows(specs[number], positions_of(table, specs[number].num_views), values)
    return outcome_of(table, reporter)
