"""Which rows of a catalog a model was trained on: what it says of them is no evidence."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from retailray import events
from retailray.data.catalog import Catalog
from retailray.data.fingerprints import fingerprints
from retailray.models.meta import BundleMeta, load_meta, load_training_fingerprints
from retailray.models.registry import resolve

CHALLENGER, CHAMPION = "challenger", "champion"  # names of the sides of a comparison


@dataclasses.dataclass(frozen=True)
class Side:
    """A bundle that is measured, and the fingerprints of its training rows, uint64 ``(N,)``; None for old bundles."""

    uri: str
    meta: BundleMeta
    trained_on: np.ndarray | None


def side_of(uri: str) -> Side:
    """The bundle at an address, or that an alias names."""
    address = resolve(uri)
    return Side(address, load_meta(address)[0], load_training_fingerprints(address))


def trained_rows(catalog: Catalog, side: Side) -> np.ndarray:
    """Which rows a bundle was trained on, bool ``(N,)``: rows of the same image address."""
    uris = catalog.column("uri")
    if side.trained_on is None:
        return np.zeros(len(catalog), bool)
    return (uris != "") & np.isin(fingerprints(uris), side.trained_on)


def warn_of_trained_rows(catalog: Catalog, sides: Mapping[str, Side]) -> None:
    """Emit a warning where measures are of rows that a model was trained on, or where that cannot be known."""
    for name, side in sides.items():
        known = int(trained_rows(catalog, side).sum())
        if known:
            events.emit(
                "warning",
                model=name,
                rows=len(catalog),
                trained_on=known,
                note="the model was trained on these rows, so its metrics are too optimistic",
            )
        elif side.trained_on is None:
            events.emit("warning", model=name, note="a bundle of an older version: its training rows are unknown")
