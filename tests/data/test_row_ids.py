"""Joins on row ids: whatever order results come back in, each is found on its own row, or nothing is published."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.config import CatalogSection, SplitSection
from retailray.data.decoding import CODE, MESSAGE, transport_table
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.data.splits import read_splits
from retailray.errors import RetailrayError
from retailray.quality.check import _frame
from retailray.quality.scan import FACTS


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(0, 12)))
def test_results_come_back_in_any_order_and_in_any_blocks(order, cuts):
    table = pa.table({ROW_ID: [10 * row for row in order], "fact": [f"fact {row}" for row in order]})
    edges = [0, *sorted(cuts), 12]
    blocks = pa.concat_tables([table.slice(low, high - low) for low, high in itertools.pairwise(edges)])
    found = in_order_of(pa.chunked_array([[0, 10, 20], [row * 10 for row in range(3, 12)]]), blocks)
    assert found.column("fact").to_pylist() == [f"fact {row}" for row in range(12)]


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 3]])
def test_a_row_that_is_lost_or_comes_twice_ends_the_run(ids):
    with pytest.raises(RetailrayError, match="please report it"):
        in_order_of(np.arange(3), pa.table({ROW_ID: ids}))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), test=st.sampled_from([0.0, 0.3]), files=st.integers(1, 3))
def test_facts_stand_beside_their_own_rows(tmp_path_factory, seed, test, files):
    """Kind of fault: each split counted its rows from 0, and facts were put beside rows by position."""
    folder = tmp_path_factory.mktemp("shop")
    for number in range(files):
        lines = [f"{number}-{row}.png,p{row // 2},x" for row in range(9)]
        (folder / f"part-{number}.csv").write_text("\n".join(["image,sku,label", *lines]) + "\n")
    section = CatalogSection(uri=f"{folder}/part-*.csv", group="sku")
    splits = read_splits(section, SplitSection(validation=0.3, test=test, seed=seed))
    table = pa.concat_tables([transport_table(part) for part in splits.values()])
    for field in FACTS:
        values = table.column("__rr_uri") if field.name == "sha256" else pa.nulls(len(table), field.type)
        table = table.append_column(field.name, values)
    at = table.column_names.index(MESSAGE)
    table = table.set_column(at, MESSAGE, table.column("__rr_id"))
    shuffled = table.take(np.random.default_rng(seed).permutation(len(table)))
    frame = _frame(splits, shuffled)
    assert len(frame) == 9 * files
    assert frame.row_id.is_unique
    assert (frame.sha256 == frame.uri).all()
    assert (frame.message == frame.id).all()
    assert set(frame.split) == set(splits)
    assert CODE not in frame.columns
