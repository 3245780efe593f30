"""What a model says of an image besides its best few labels: its most probable classes, and its embedding.

What looks at more than one label (one answer for a product, a sum over a branch of a taxonomy) reads the classes. They
are bounded: a model of 20,000 classes would otherwise leave 80 KB an image.
"""

import numpy as np
import pyarrow as pa

KEPT = 64  # classes of an image; what is left of its probability is spread evenly over all others
CLASSES_FIELD = pa.field("classes", pa.list_(pa.int32()))  # numbers in the bundle's labels, most probable first
PROBABILITIES_FIELD = pa.field("probabilities", pa.list_(pa.float32()))  # theirs, calibrated


def most_probable(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float ``(N, C)`` to the classes and their probabilities, int32 and float32 ``(N, min(C, KEPT))``, largest first.

    Equal ones come in the order of the classes.
    """
    num = min(KEPT, probabilities.shape[1])
    chosen = np.argpartition(-probabilities, num - 1, axis=1)[:, :num]
    chosen.sort(axis=1)
    found = np.take_along_axis(probabilities, chosen, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    classes, kept = (np.take_along_axis(array, order, axis=1) for array in (chosen, found))
    return classes.astype(np.int32), kept.astype(np.float32)


def lists(values: pa.Array, width: int) -> pa.Array:
    """``N * width`` values as N lists."""
    offsets = np.arange(0, len(values) + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def lists_of(values: np.ndarray) -> pa.Array:
    """A list a row of an array ``(N, K)``."""
    return lists(pa.array(values.ravel()), values.shape[1])


def rows_of(column: pa.ChunkedArray) -> np.ndarray:
    """Of a column of lists of one length, ``(N, K)``; of no rows, ``(0, 1)``."""
    values = column.combine_chunks().flatten()
    return values.to_numpy(zero_copy_only=False).reshape(len(column), len(values) // len(column) if len(column) else 1)


def spread(classes: np.ndarray, probabilities: np.ndarray, num_classes: int) -> np.ndarray:
    """What :func:`most_probable` found, as a row of all classes: float32 ``(N, num_classes)``."""
    rest = np.clip(1 - probabilities.sum(1, keepdims=True), 0, 1) / max(1, num_classes - probabilities.shape[1])
    found = np.repeat(rest.astype(np.float32), num_classes, axis=1)
    np.put_along_axis(found, classes.astype(np.int64), probabilities, axis=1)
    return found


def unpacked(column: pa.ChunkedArray) -> np.ndarray:
    """Embeddings, float16 ``(N, D)``, of binaries of one length (:func:`packed`)."""
    if not len(column):
        return np.zeros((0, 0), np.float16)
    return np.frombuffer(b"".join(column.to_pylist()), "<f2").reshape(len(column), -1)


def packed(halves: np.ndarray) -> pa.Array:
    """Embeddings, float16 ``(N, D)``, as binaries: DuckDB, which joins them, takes no float16."""
    data = np.ascontiguousarray(halves.astype("<f2"))
    kind = pa.binary(2 * data.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(data), [None, pa.py_buffer(data)]).cast(pa.binary())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
