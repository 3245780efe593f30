"""Histories of shoppers, some at a time, from a table of purchases."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray.data.interactions import DAY_S, Interactions


def history_batches(
    interactions: Interactions, products: np.ndarray, reference: np.ndarray, without: set[int]
) -> Iterator[pa.Table]:
    """A row per shopper: ``shopper``, and lists ``products`` (numbers), ``days`` and ``baskets`` of what was bought.

    Args:
        products: int64, the number of each product to those who recommend; -1: they do not know it. reference: int64,
            by number of the shopper, see :func:`recommend_to`. without: shoppers to leave out.
    """
    held: list[pa.Table] = []
    query = f"select shopper, product, time / {float(DAY_S)} as day, basket from bought order by shopper, product, time"

    def listed(rows: pa.Table) -> pa.Table:
        shopper = rows.column("shopper").to_numpy()
        number = products[rows.column("product").to_numpy()]
        starts = np.flatnonzero(np.diff(shopper, prepend=-1))
        keep = number >= 0
        offsets = np.append(np.concatenate([[0], np.cumsum(keep)])[starts], keep.sum()).astype(np.int32)
        columns = {"products": number[keep].astype(np.int32), "days": rows.column("day").to_numpy()[keep]}
        columns["baskets"] = rows.column("basket").to_numpy()[keep]
        lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
        found = pa.table({"shopper": shopper[starts], "reference": reference[shopper[starts]], **lists})
        return found.filter(~np.isin(shopper[starts], list(without))) if without else found

    for piece in interactions.pieces(query):
        held.append(piece)
        together = pa.concat_tables(held)
        last = together.column("shopper")[-1].as_py()
        whole = int(np.searchsorted(together.column("shopper").to_numpy(), last))
        if whole:
            yield listed(together.slice(0, whole))
        held = [together.slice(whole)]
    if held:
        yield listed(pa.concat_tables(held))


def digests_of(interactions: Interactions) -> dict[int, int]:
    """By number of the shopper, what tells that he or she bought something else than before."""
    marks = pd.util.hash_array(np.array(interactions.products.texts(), object)).view(np.int64)
    found = {}
    for table in history_batches(interactions, np.arange(len(marks)), np.full(len(interactions.shoppers), -1), set()):
        lists = table.column("products").combine_chunks()
        offsets = lists.offsets.to_numpy()
        days = table.column("days").combine_chunks().flatten().to_numpy()
        rows = np.stack([marks[lists.flatten().to_numpy()], days.view(np.int64)], axis=1)
        for at, shopper in enumerate(table.column("shopper").to_pylist()):
            part = rows[offsets[at] : offsets[at + 1]]
            part = part[np.lexsort((part[:, 1], part[:, 0]))]  # not in the order of numbers, which are the table's
            found[shopper] = int.from_bytes(hashlib.blake2b(part.tobytes(), digest_size=8).digest(), "little")
    return found
