"""From catalog rows to ``uint8 (3, H, W)`` in one CPU task that fetches, decodes and resizes.

Rows travel as Arrow tables. Our own columns begin with :data:`COLUMN_PREFIX`; pixels are binary of one size, so that
a block is one flat buffer of uint8. A row that fails travels on with a code, and with black pixels where it is to be
counted among others (training), without any where it is only to be reported (scoring).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.data.images import Limits, decode
from retailray.data.row_ids import COLUMN_PREFIX, ROW_ID
from retailray.data.scaling import Scaling
from retailray.errors import ERROR_CODES, ImageError

if TYPE_CHECKING:
    from retailray.data.catalog import Catalog

ID, IMAGE, URI, LABEL = (COLUMN_PREFIX + name for name in ("id", "image", "uri", "label"))
SLOT = COLUMN_PREFIX + "slot"  # where a row lies in a cache, from 0
CODE, MESSAGE, PIXELS, VIEW = (COLUMN_PREFIX + name for name in ("error_code", "message", "pixels", "view"))
PADDING = "padding"  # the code of rows that only fill up the last batch
CHUNK_ROWS = 64  # fetched and decoded at a time: enough requests in flight, about 10 MB of pixels


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """How pictures become pixels; what exceeds ``limits`` is refused."""

    scaling: Scaling
    limits: Limits

    @property
    def size_px(self) -> int:
        """Side of the square."""
        return self.scaling.crop_size

    @property
    def num_bytes(self) -> int:
        return 3 * self.size_px**2


def transport_table(catalog: "Catalog") -> pa.Table:
    """The columns that travel: :data:`ROW_ID` and what tasks need. Rows that cannot be fetched have their code."""
    rows = catalog.rows
    repeated = catalog.column("repeated")
    empty, denied_reason = catalog.column("uri") == "", catalog.column("denied_reason")
    fault_code = catalog.column("fault_code")
    faults = [fault_code != "", empty, denied_reason != "", repeated]
    code = np.select(faults, [fault_code, "empty_path", "not_allowed", "duplicate_id"], "")
    message = np.select(
        faults, [denied_reason, "the image column is empty", denied_reason, "an earlier row has this id"], ""
    )
    at = [
        f" ({file} line {line})" if text else ""
        for file, line, text in zip(rows.column("file").to_pylist(), rows.column("line").to_pylist(), code, strict=True)
    ]
    return pa.table(
        {
            ROW_ID: rows.column("row_id"),
            ID: rows.column("id"),
            IMAGE: rows.column("image"),
            URI: rows.column("uri"),
            LABEL: rows.column("label"),
            CODE: pa.array(code.tolist(), pa.string()),
            MESSAGE: pa.array([text + where for text, where in zip(message, at, strict=True)], pa.string()),
        }
    )


def blocks_of(table: pa.Table, num_blocks: int) -> list[pa.Table]:
    """A transport table in about so many parts, none of them with less than a chunk."""
    rows_per_block = max(CHUNK_ROWS, -(-table.num_rows // max(1, num_blocks)))
    return [table.slice(start, rows_per_block) for start in range(0, table.num_rows, rows_per_block)]


def decode_rows(table: pa.Table, *, spec: DecodeSpec, access: storage.Access) -> pa.Table:
    """Fetch and decode the rows of one chunk; failures become codes."""
    pixels = np.zeros((table.num_rows, 3, spec.size_px, spec.size_px), np.uint8)

    def take(index: int, data: bytes) -> None:
        pixels[index] = decode(data, spec.scaling, spec.limits)

    table = fetch_each(table, take, access)
    return table.append_column(PIXELS, pixels_to_arrow(pixels))


def fetch_each(table: pa.Table, take: Callable[[int, bytes], None], access: storage.Access) -> pa.Table:
    """Fetch the rows of one chunk and hand each row's number and bytes to ``take``; note the code of what fails."""
    codes, messages = table.column(CODE).to_pylist(), table.column(MESSAGE).to_pylist()
    wanted = [index for index, code in enumerate(codes) if not code]
    uris = table.column(URI).to_pylist()
    for group in storage.fetch_groups([uris[index] for index in wanted], access):
        for number, data in group.items():
            index = wanted[number]
            try:
                if isinstance(data, ImageError):
                    raise data
                take(index, data)
            except ImageError as error:
                codes[index], messages[index] = error.code, error.message
    return with_errors(table, codes, messages)


def with_errors(table: pa.Table, codes: list[str], messages: list[str]) -> pa.Table:
    """Replace the error columns of a transport table."""
    for name, values in ((CODE, codes), (MESSAGE, messages)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


def pixels_to_arrow(pixels: np.ndarray) -> pa.FixedSizeBinaryArray:
    """uint8 ``(N, 3, H, W)`` as fixed-size binary (N,), without a copy."""
    kind = pa.binary(int(np.prod(pixels.shape[1:])))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(np.ascontiguousarray(pixels))])


def some_pixels_to_arrow(pixels: np.ndarray, kept: np.ndarray) -> pa.LargeBinaryArray:
    """uint8 ``(N, 3, H, W)`` as binary (N,), empty where ``kept``, bool ``(N,)``, is false; no copy where all are."""
    width = int(np.prod(pixels.shape[1:]))
    offsets = np.concatenate([[0], np.cumsum(kept * width)]).astype(np.int64)
    values = np.ascontiguousarray(pixels if kept.all() else pixels[kept])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(pixels), [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    )


def pixels_to_numpy(column: pa.ChunkedArray, size_px: int) -> np.ndarray:
    """The reverse: uint8 ``(M, 3, size_px, size_px)`` of the M rows that have pixels; read-only and without a copy
    where the column is one chunk."""
    arrays = []
    for chunk in column.chunks:
        flat, width = np.frombuffer(chunk.buffers()[-1], np.uint8), 3 * size_px**2
        first, last = chunk.offset, chunk.offset + len(chunk)
        if pa.types.is_large_binary(chunk.type):
            offsets = np.frombuffer(chunk.buffers()[1], np.int64)
            arrays.append(flat[offsets[first] : offsets[last]])
        else:
            arrays.append(flat[first * width : last * width])
    flat = arrays[0] if len(arrays) == 1 else np.concatenate(arrays) if arrays else np.empty(0, np.uint8)
    return flat.reshape(-1, 3, size_px, size_px)


def error_rows(table: pa.Table) -> pa.Table:
    """The error rows of a decoded or predicted table: ``id, image, stage, error_code, message`` (all text)."""
    failed = table.filter(pa.compute.not_equal(table.column(CODE), ""))
    stages = [ERROR_CODES[code][0] for code in failed.column(CODE).to_pylist()]
    columns: dict[str, object] = {
        "id": failed.column(ID),
        "image": failed.column(IMAGE),
        "stage": pa.array(stages, pa.string()),
        "error_code": failed.column(CODE),
        "message": failed.column(MESSAGE),
    }
    return pa.table(columns)
