"""Images that lie inside of a Parquet file: a column of bytes, or Hugging Face's ``{bytes, path}``."""

import collections
import threading
from typing import Any

from retailray.errors import ImageError
from retailray.storage.failures import image_error
from retailray.storage.identity import identities
from retailray.storage.objects import open_binary

Place = tuple[str, str, int]  # file, column, row from 0
CACHED_ROW_GROUPS = 2  # of this process: consecutive rows are asked for together, and a row group is read whole
_cached: collections.OrderedDict[tuple[str, str, int], object] = collections.OrderedDict()
_lock = threading.Lock()


def fetch_embedded(places: dict[int, Place]) -> dict[int, bytes | ImageError]:
    """Return the bytes at every place, by the caller's key; what cannot be read is an ImageError."""
    results: dict[int, bytes | ImageError] = {}
    by_file: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for key, (file, column, row) in places.items():
        by_file.setdefault((file, column), []).append((row, key))
    for (file, column), members in by_file.items():
        try:
            results |= _read_rows(file, column, sorted(members))
        except Exception as error:  # whatever pyarrow or the store raises holds for the rows that are still missing
            failed = image_error(error, file)
            results |= {key: failed for _, key in members if key not in results}
    return results


def _read_rows(file: str, column: str, members: list[tuple[int, int]]) -> dict[int, bytes | ImageError]:
    import pyarrow.parquet as pq

    results: dict[int, bytes | ImageError] = {}
    version = f"{file} {identities([file])[0]}"  # another content at the same address is another file
    with open_binary(file) as opened:
        source = pq.ParquetFile(opened, pre_buffer=False)
        first = 0
        for number in range(source.num_row_groups):
            stop = first + source.metadata.row_group(number).num_rows
            wanted = [(row - first, key) for row, key in members if first <= row < stop]
            if wanted:
                values = _row_group(version, source, column, number)
                results |= {key: _value(values[at].as_py(), column) for at, key in wanted}
            first = stop
    missing = {key: row for row, key in members if key not in results}
    return results | {key: ImageError("not_found", f"{file}: it has no row {row}") for key, row in missing.items()}


def _row_group(version: str, source: Any, column: str, number: int) -> Any:
    key = version, column, number
    with _lock:
        if key not in _cached:
            while len(_cached) >= CACHED_ROW_GROUPS:
                _cached.popitem(last=False)
            _cached[key] = source.read_row_group(number, columns=[column]).column(column)
        _cached.move_to_end(key)
        return _cached[key]


def _value(value: object, column: str) -> bytes | ImageError:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else ImageError("empty_path", f"the column {column!r} holds no image")
