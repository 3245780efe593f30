"""Embeddings of products: sums over batches that end anywhere, against means by numpy."""

import numpy as np
import pyarrow as pa
import pytest

from retailray.models.embedding import published as packed
from retailray.models.probabilities import unpacked
from retailray.scoring.embeddings import _of_products


@pytest.mark.parametrize("rows", [1, 3, 7, 50])
def test_a_product_that_goes_on_in_the_next_batch_is_one_product(rows):
    generator = np.random.default_rng(0)
    vectors, names = generator.normal(size=(50, 8)), np.sort(generator.integers(0, 7, 50)).astype(str)
    uris = [f"u{number}" for number in range(50)]
    table = pa.table({"product": names, "uri": uris, "features": packed(vectors)})
    found = pa.concat_tables(list(_of_products(table.slice(at, rows) for at in range(0, 50, rows))))
    assert found.column("id").to_pylist() == sorted(set(names))
    halves = vectors.astype(np.float16).astype(float)
    unit = halves / np.linalg.norm(halves, axis=1, keepdims=True)
    for row in found.to_pylist():
        mean = unit[names == row["id"]].mean(0)
        np.testing.assert_allclose(np.array(row["embedding"], float), mean / np.linalg.norm(mean), atol=2e-3)
        assert row["image"] == uris[np.flatnonzero(names == row["id"])[0]]


def test_what_is_packed_is_what_is_unpacked():
    vectors = np.array([[1.5, -2.0], [1e6, 0.0]])
    found = unpacked(pa.chunked_array([packed(vectors)]))
    assert found.tolist() == [[1.5, -2.0], [65504.0, 0.0]], "what a float16 cannot hold is the largest that it can"
    assert unpacked(pa.chunked_array([pa.array([], pa.binary())])).shape == (0, 0)
