"""One look at every image of a catalog, in parallel: header, checksum, perceptual hash, or the reason why not."""

import hashlib

import imagehash
import pyarrow as pa
from PIL import Image

from retailray import storage
from retailray.data.decoding import fetch_each
from retailray.data.images import Limits, open_image, pixels
from retailray.data.scaling import Scaling
from retailray.events import Reporter

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


def scan_rows(table: pa.Table, *, limits: Limits, access: storage.Access, reporter: Reporter) -> pa.Table:
    """A transport table with the columns of :data:`FACTS`, null where a row failed."""
    reporter.step(table.num_rows)
    facts: list[dict[str, object]] = [{} for _ in range(table.num_rows)]

    def take(index: int, data: bytes) -> None:
        facts[index] = _look(data, limits)

    table = fetch_each(table, take, access)
    for field in FACTS:
        table = table.append_column(field, pa.array([fact.get(field.name) for fact in facts], field.type))
    return table


def _look(data: bytes, limits: Limits) -> dict[str, object]:
    image, facts = open_image(data, limits)
    square = pixels(image, Scaling(HASH_PX, HASH_PX))
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
