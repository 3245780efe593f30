"""Pixels in Arrow: rows without any take no room, and those with some come back as they were."""

import numpy as np
import pyarrow as pa
import pytest

from retailray.data.decoding import pixels_to_arrow, pixels_to_numpy, some_pixels_to_arrow


@pytest.mark.parametrize("kept", [[True] * 6, [False] * 6, [True, False, False, True, True, False]])
@pytest.mark.parametrize(("first", "last"), [(0, 6), (1, 5), (3, 3), (5, 6)])
def test_rows_without_pixels_carry_none(kept, first, last):
    """Kind of fault: every failed or reused row carries 150 KB of black. In slices and several chunks too."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8)
    array = some_pixels_to_arrow(pixels, np.array(kept))
    assert len(array) == 6
    assert array.nbytes <= sum(kept) * 48 + 7 * 8
    part = array.slice(first, last - first)
    expected = pixels[first:last][np.array(kept[first:last], bool)]
    np.testing.assert_array_equal(pixels_to_numpy(pa.chunked_array([part]), 4), expected)
    both = pa.chunked_array([part, array])
    np.testing.assert_array_equal(pixels_to_numpy(both, 4), np.concatenate([expected, pixels[np.array(kept)]]))
    together = pa.chunked_array([both.combine_chunks()])
    np.testing.assert_array_equal(pixels_to_numpy(together, 4), np.concatenate([expected, pixels[np.array(kept)]]))


def test_rows_of_training_all_have_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8)
    column = pa.chunked_array([pixels_to_arrow(pixels).slice(2, 3)])
    np.testing.assert_array_equal(pixels_to_numpy(column, 4), pixels[2:5])
