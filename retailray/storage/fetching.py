"""The bytes of many images at once; what cannot be had is an error of its own and stops nobody else."""

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from retailray.errors import ImageError, StorageError
from retailray.storage.addresses import is_local, other_unicode_forms, parse_embedded
from retailray.storage.client import ROUNDS, back_off, describe, filesystem, passes
from retailray.storage.embedded import fetch_embedded

AT_ONCE = 64  # objects in memory, of those that are fetched in turn


def fetch_many(addresses: Sequence[str]) -> list[bytes | ImageError]:
    """The bytes of many objects, concurrently, in order; what cannot be fetched comes back as an ImageError.

    An object that is not found is looked for under the other Unicode form of its name. Addresses of
    :func:`retailray.storage.embedded_address` give the bytes that lie in a row of a Parquet file.
    """
    results: dict[int, bytes | ImageError] = {}
    embedded = {at: place for at, address in enumerate(addresses) if (place := parse_embedded(address))}
    results |= fetch_embedded(embedded)
    results |= _fetch({at: address for at, address in enumerate(addresses) if at not in results})
    missing = [at for at, found in results.items() if isinstance(found, ImageError) and found.code == "not_found"]
    for at in missing:
        for form in other_unicode_forms(addresses[at]):
            found = _fetch({at: form})[at]
            if isinstance(found, bytes):
                results[at] = found
    return [results[at] for at in range(len(addresses))]


def _fetch(addresses: dict[int, str]) -> dict[int, bytes | ImageError]:
    results: dict[int, bytes | ImageError] = {}
    groups: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for index, address in addresses.items():
        try:
            fs, path = filesystem(address)
            if is_local(address):
                _require_file(path)
        except StorageError as error:
            results[index] = ImageError("bad_address", str(error))
            continue
        groups.setdefault(id(fs), (fs, []))[1].append((index, path))
    for fs, members in groups.values():
        found = _cat_patiently(fs, sorted({path for _, path in members}))
        for index, path in members:
            value = found[path]
            results[index] = value if isinstance(value, bytes) else _fetch_error(value, addresses[index])
    return results


def fetch_in_turn(addresses: Sequence[str]) -> Iterator[bytes | ImageError]:
    """The same, :data:`AT_ONCE` at a time, for those who need not hold them all."""
    for start in range(0, len(addresses), AT_ONCE):
        yield from fetch_many(addresses[start : start + AT_ONCE])


def _require_file(path: str) -> None:
    """Raises StorageError for what must not be read as an image: devices and pipes never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
            return  # reading says it better
        raise StorageError(f"{path[:200]!r}: {' '.join(str(error).split())[:300]}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StorageError(f"{path}: not a file but a device, pipe or socket")


def _cat_patiently(fs: Any, paths: list[str]) -> dict[str, Any]:
    """:func:`_cat`, and again for what failed for the moment, as :func:`patiently` does."""
    found = _cat(fs, paths)
    for attempt in range(ROUNDS - 1):
        again = [path for path, value in found.items() if isinstance(value, BaseException) and passes(value)]
        if not again:
            break
        back_off(attempt)
        found |= _cat(fs, again)
    return found


def _cat(fs: Any, paths: list[str]) -> dict[str, Any]:
    """Bytes or exception by path. ``cat_ranges`` and not ``cat``, which takes ``*`` and ``[`` in names for patterns."""
    try:
        return dict(zip(paths, fs.cat_ranges(paths, None, None, on_error="return"), strict=True))
    except Exception as error:  # whatever the client raises for the whole group holds for each of its members
        return dict.fromkeys(paths, error)


def _fetch_error(error: BaseException, address: str) -> ImageError:
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return ImageError("not_found", f"{address}: not found")
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return ImageError("access_denied", describe(error, address))
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) or "Timeout" in type(error).__name__:
        return ImageError("timeout", describe(error, address))
    if isinstance(error, ValueError) and "null byte" in str(error):
        return ImageError("bad_address", f"{address!r}: {error}")
    return ImageError("fetch_failed", describe(error, address))
