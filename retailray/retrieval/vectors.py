"""Embeddings as they are published, read to be compared."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retailray import storage
from retailray.errors import CatalogError
from retailray.models.probabilities import unit

PRODUCT_EMBEDDINGS, EMBEDDINGS = "product_embeddings", "embeddings"


@dataclasses.dataclass(frozen=True)
class Vectors:
    """``ids``: text ``(N,)``; ``images``: an address each, '' if unknown; ``values``: float16 ``(N, D)`` of length 1;
    ``version``: of the model, '' if unknown. ``run``: the scoring run, if it is one; ``level``: image or product."""

    ids: pa.Array
    images: pa.Array
    values: np.ndarray
    version: str
    run: str | None
    level: str

    def __len__(self) -> int:
        return len(self.ids)


def read_vectors(uri: str, level: str) -> Vectors:
    """Read ``product_embeddings/`` or ``embeddings/`` of a run, or a folder of such files.

    Raises:
        CatalogError: there are none, they are of several models or sizes, or an id comes twice.
        StorageError: the address cannot be read.
    """
    run = _run_of(uri)
    folder, found_level = uri, "image"
    if run:
        folder, found_level = _folder(run, level)
    elif level == "product":
        found_level = "product"
    names = sorted(name for name in storage.list_files(folder) if name.endswith(".parquet"))
    if not names:
        raise CatalogError(
            f"embeddings.uri = {uri}: there are no embeddings; `score` leaves them with score.embeddings "
            "true, of images that have a prediction"
        )
    ids, images, parts, versions = [], [], [], set()
    for name in names:
        for table in _tables(name):
            ids.append(table.column("id").cast(pa.string()).combine_chunks())
            unknown = pa.array([""] * table.num_rows)
            images.append(
                table.column("image").cast(pa.string()).combine_chunks() if "image" in table.column_names else unknown
            )
            if "model_version" in table.column_names:
                versions |= set(pc.unique(table.column("model_version")).to_pylist()) - {None}
            parts.append(_unit(table.column("embedding"), name))
    if not parts:
        raise CatalogError(f"embeddings.uri = {uri}: its files have no rows")
    _check(uri, versions, {part.shape[1] for part in parts if len(part)})
    vectors = Vectors(
        pa.concat_arrays(ids),
        pa.concat_arrays(images),
        np.concatenate(parts),
        next(iter(versions), ""),
        run,
        found_level,
    )
    counted = pc.value_counts(vectors.ids)
    if len(repeated := counted.filter(pc.greater(counted.field("counts"), 1))):
        name, count = repeated[0]["values"], repeated[0]["counts"]
        raise CatalogError(f"embeddings.uri = {uri}: the id {name} comes {count} times")
    return vectors


def _run_of(uri: str) -> str | None:
    """The run directory that an address means, if it is one, or has one that LATEST names."""
    if storage.exists(storage.join(uri, "run.json")):
        return uri
    pointer = storage.join(uri, "LATEST")
    return storage.join(uri, storage.read_bytes(pointer).decode().strip()) if storage.exists(pointer) else None


def _folder(run: str, level: str) -> tuple[str, str]:
    products = storage.join(run, PRODUCT_EMBEDDINGS)
    if level != "image" and storage.list_files(products):
        return products, "product"
    if level == "product":
        raise CatalogError(f"similar.level = product: {run} has no embeddings of products; score with catalog.group")
    return storage.join(run, EMBEDDINGS), "image"


def _tables(name: str) -> Iterator[pa.Table]:
    file = pq.ParquetFile(io.BytesIO(storage.read_bytes(name)))
    missing = {"id", "embedding"} - set(file.schema_arrow.names)
    if missing:
        raise CatalogError(f"{name}: it has no column {' and no column '.join(sorted(missing))}")
    for batch in file.iter_batches(65_536):
        yield pa.Table.from_batches([batch])


def _unit(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """float16 ``(N, D)`` of length 1. Raises CatalogError."""
    values = column.combine_chunks()
    lengths = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise CatalogError(f"{name}: embeddings of {' and '.join(map(str, lengths))} numbers cannot be compared")
    vectors = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(values), -1)
    if not np.isfinite(vectors).all():
        raise CatalogError(f"{name}: an embedding is not finite (NaN or infinite)")
    return unit(vectors).astype(np.float16)


def _check(uri: str, versions: set[str], sizes: set[int]) -> None:
    if len(versions) > 1:
        told = " and ".join(sorted(versions))
        raise CatalogError(f"embeddings.uri = {uri}: embeddings of the models {told} cannot be compared")
    if len(sizes) != 1:
        raise CatalogError(f"embeddings.uri = {uri}: embeddings of {sorted(sizes)} numbers cannot be compared")


def of_products(vectors: Vectors, names: list[str], what: str) -> tuple[list[str], np.ndarray]:
    """Products that are known otherwise, then those that only have embeddings; and the embeddings of all of them.

    Args:
        names: of the known ones. what: where these are from, for the message.

    Returns:
        names ``(P,)``, and float32 ``(P, D)``, 0 where there is no embedding.

    Raises:
        CatalogError: none of the known products has one.
    """
    ids, known = vectors.ids.to_pylist(), set(names)
    if not set(ids) & known:
        raise CatalogError(
            f"embeddings.uri: none of its products ({', '.join(ids[:3])}, ...) is among those of the {what} "
            f"({', '.join(names[:3])}, ...); score with catalog.group naming the same ids"
        )
    together = names + [name for name in ids if name not in known]
    number = {name: at for at, name in enumerate(together)}
    found = np.zeros((len(together), vectors.values.shape[1]), np.float32)
    found[[number[name] for name in ids]] = vectors.values
    return together, found


def digests(vectors: Vectors, also: np.ndarray) -> np.ndarray:
    """What tells a changed row, uint64 ``(N,)``: of its vector and of ``also``, int64 ``(N, M)``."""
    found = np.empty(len(vectors), np.uint64)
    for row, (vector, more) in enumerate(zip(vectors.values, also, strict=True)):
        digest = hashlib.blake2b(vector.tobytes() + more.tobytes(), digest_size=8).digest()
        found[row] = int.from_bytes(digest, "little")
    return found
