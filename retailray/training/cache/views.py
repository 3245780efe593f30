"""Fixed augmented views of images: from images or cached pixels, one row per view."""

import dataclasses

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.data.decoding import (
    CODE,
    MESSAGE,
    PIXELS,
    SLOT,
    URI,
    VIEW,
    DecodeSpec,
    decode_rows,
    pixels_to_arrow,
    pixels_to_numpy,
)
from retailray.training.cache.store import CacheReader, CacheSpec


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """``num_views`` fixed augmented views of an image, each drawn by ``seed``, the image's address and its number."""

    decode: DecodeSpec
    augment: str
    random_erasing_prob: float
    crop_size: int
    num_views: int
    seed: int


def decode_views(
    table: pa.Table,
    *,
    spec: ViewSpec,
    keep: list[str],
    access: storage.Access,
    decoded: CacheSpec | None = None,
    budget: int = 0,
) -> pa.Table:
    """Fetch, decode and augment the rows of one chunk: ``num_views`` rows for one, in order.

    One row per view: its slot, view, code, message and pixels, and the columns to ``keep``. ``decoded``: a store of the
    same rows' pixels, as large or larger, to read in place of the images; ``budget``: bytes that copies of remote
    stores may take on a machine.
    """
    if decoded:
        pixels = _central(decoded, budget, table.column(SLOT).to_numpy(), spec.decode.size_px)
    else:
        table = decode_rows(table, spec=spec.decode, access=access)
        pixels = pixels_to_numpy(table.column(PIXELS), spec.decode.size_px)
    rows = np.repeat(np.arange(table.num_rows), spec.num_views)
    views = np.tile(np.arange(spec.num_views), table.num_rows)
    repeated = pixels[rows]
    if spec.augment != "none" or spec.random_erasing_prob:
        repeated = _augmented(repeated, table.column(URI).take(rows).to_pylist(), views, spec)
    table = table.select([SLOT, CODE, MESSAGE, *keep]).take(rows)
    return table.append_column(VIEW, pa.array(views)).append_column(PIXELS, pixels_to_arrow(repeated))


def _central(decoded: CacheSpec, budget: int, rows: np.ndarray, size_px: int) -> np.ndarray:
    """Return the central square of cached pixels: equal to decoding, up to two grey levels of rounding in Pillow."""
    pixels = CacheReader(decoded, budget=budget).take(rows, np.zeros_like(rows))
    margin = (decoded.shape[-1] - size_px) // 2
    return pixels[..., margin : margin + size_px, margin : margin + size_px]


def _augmented(pixels: np.ndarray, uris: list[str], views: np.ndarray, spec: ViewSpec) -> np.ndarray:
    import torch  # a second or two in every task process, so only where it is needed; of one thread, Ray sees to that

    from retailray.data.transforms import draw_seed, make_augment

    augment = make_augment(spec.augment, spec.crop_size, random_erasing_prob=spec.random_erasing_prob)
    assert augment is not None
    seeds = [draw_seed(spec.seed, uri, view) for uri, view in zip(uris, views, strict=True)]
    return augment(torch.from_numpy(pixels), seeds).numpy()
