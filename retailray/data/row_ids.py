"""Tables are joined on the row id of the catalog, and never aligned by position."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.errors import RetailrayError

COLUMN_PREFIX = "__rr_"  # how our own columns begin
ROW_ID = COLUMN_PREFIX + "row_id"


def in_order_of(row_ids: pa.ChunkedArray | pa.Array | np.ndarray, table: pa.Table, *, key: str = ROW_ID) -> pa.Table:
    """Return the rows of ``table`` in the order of ``row_ids``; its column ``key`` holds each of them exactly once.

    Raises:
        RetailrayError: a row is missing, or came twice, or is of no catalog row; nothing may be published then.
    """
    wanted = pa.array(row_ids) if isinstance(row_ids, np.ndarray) else row_ids
    have = table.column(key)
    distinct = pc.count_distinct(have).as_py()
    if len(have) != len(wanted) or distinct != len(have):
        raise RetailrayError(
            f"{len(wanted)} rows went in and {len(have)} came out, {distinct} of them different; this is a defect of "
            "retailray, please report it"
        )
    positions = pc.index_in(wanted, value_set=have.combine_chunks())
    if positions.null_count:
        raise RetailrayError(
            f"{positions.null_count} of {len(wanted)} rows did not come out; this is a defect of retailray, please "
            "report it"
        )
    return table.take(positions)
