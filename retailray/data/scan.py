"""One look at every image of a catalog, in parallel: header, checksum, perceptual hash, or the reason why not."""

import hashlib
from typing import Any

import imagehash
import pyarrow as pa
import ray
from PIL import Image

from retailray.data.images import Limits, open_image, pixels
from retailray.data.pipeline import fetch_each, map_chunks
from retailray.data.row_ids import ROW_ID, in_order_of

HASH_PX = 64  # enough for the 32 px cosine transform of the perceptual hash
FACTS = pa.schema(
    [
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
    ]
)


def scan_catalog(table: pa.Table, limits: Limits, *, task_cpus: float, num_blocks: int, relay: Any) -> pa.Table:
    """A transport table with the columns of :data:`FACTS` for every row (null where a row failed), in its order.

    ``relay`` is told of every chunk.
    """
    arguments = {"limits": limits, "relay": relay}
    scanned = map_chunks(table, scan_rows, arguments, task_cpus=task_cpus, num_blocks=num_blocks)
    parts = [part for part in ray.get(scanned.to_arrow_refs()) if part.num_rows]
    return in_order_of(table.column(ROW_ID), pa.concat_tables(parts))


def scan_rows(table: pa.Table, *, limits: Limits, relay: Any) -> pa.Table:
    """Fetch and look at one chunk; tell the relay."""
    relay.step.remote(table.num_rows)
    facts: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]

    def take(index: int, data: bytes) -> None:
        facts[index] = _look(data, limits)

    table = fetch_each(table, take)
    for field in FACTS:
        table = table.append_column(field, pa.array([fact.get(field.name) for fact in facts], field.type))
    return table


def _look(data: bytes, limits: Limits) -> dict[str, Any]:
    image, facts = open_image(data, limits)
    square = pixels(image, resize_size=HASH_PX, crop_size=HASH_PX)
    bits = imagehash.phash(Image.fromarray(square.transpose(1, 2, 0))).hash.ravel()
    return {
        "format": facts.format,
        "mode": facts.mode,
        "width": facts.width,
        "height": facts.height,
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": int("".join("1" if bit else "0" for bit in bits), 2),
    }
