"""What lies where, without reading it: identity and size of the images that a catalog names.

A listing tells a thousand objects a request, page by page; local files are asked one by one, which costs little. What
has no identity (http, and what is not found) is read and told by its bytes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from retailray import progress, storage
from retailray.errors import StorageError

RANGES, RANGE_ROWS = 8, 5_000  # listings of one folder at once, at most; images in a range, at least
# a listing that tells this many objects for one that is wanted is given up: the catalog is a corner of a large bucket
MAX_RATIO, MAX_FREE = 20, 200_000
LISTED = pa.schema([("uri", pa.string()), ("identity", pa.string()), ("size", pa.int64())])


def list_images(
    uris: Iterable[list[str]],
    folders: list[str],
    num_images: int,
    *,
    covered: list[str],
    sample: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Tables of :data:`LISTED`; a superset of the images that have an identity.

    Args:
        uris: all addresses, in lists. folders: for every store, the deepest folder that holds all of its images.
        covered: gets the folders that were listed to the end: what is below them and was not told is not there. A
            store that cannot be listed is left out, with a warning. sample: some of the addresses, drawn at random;
            they say where long listings are cut into ranges that are listed at once.
    """
    remote = [folder for folder in folders if storage.is_uri(folder) and not folder.startswith("http")]
    if any(not storage.is_uri(folder) for folder in folders):
        for part in uris:
            local = [uri for uri in part if storage.is_local(uri)]
            yield _table([(uri, *found) for uri in local if (found := _local(uri))])
        covered.append("")
    for folder in remote:
        budget = max(MAX_FREE, MAX_RATIO * num_images)
        try:
            for page in storage.iterate(folder, bounds=_bounds(folder, sample, num_images)):
                budget -= len(page)
                if budget < 0:
                    break
                yield _table(page)
            else:
                covered.append(folder)
        except (StorageError, NotImplementedError) as error:
            progress.emit("warning", not_listed=folder, reason=str(error)[:300], note="its images are read one by one")


def _bounds(folder: str, sample: Sequence[str], num_images: int) -> list[str]:
    """Addresses below a folder that cut the catalog's images there into equal parts."""
    inside = sorted(uri for uri in sample if uri.startswith(f"{folder}/"))
    parts = min(RANGES, num_images // RANGE_ROWS)
    return sorted({inside[len(inside) * at // parts] for at in range(1, parts)}) if len(inside) > RANGES else []


def _table(rows: list[tuple[str, str | None, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTED, strict=True)], LISTED)


def _local(uri: str) -> tuple[str, int] | None:
    path = storage.canonical(uri)
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return storage.local_identity(stat), stat.st_size
