"""The bytes of many images, some at a time; what cannot be had is an error of its own and stops nobody else."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from retailray.errors import ImageError, NotAllowed, StorageError, TooLarge
from retailray.storage.access import Access, leads_out
from retailray.storage.addresses import Member, is_local, is_web, other_unicode_forms, parse_embedded, parse_member
from retailray.storage.archives import fetch_members
from retailray.storage.client import ROUNDS, back_off, with_deadline
from retailray.storage.embedded import fetch_embedded
from retailray.storage.failures import image_error, is_transient, status_of
from retailray.storage.identity import identities
from retailray.storage.opening import store_of

Found = bytes | ImageError
NO_MORE_THAN_64_MB = Access()
AT_ONCE = 64  # objects that are asked for together
FIRST_BYTES = 1 << 20  # read of an object whose size is not known; most pictures are smaller
GROUP_BYTES = 128 << 20  # of objects that are in memory together; one object may be larger, up to Access.max_bytes


def fetch_groups(
    addresses: Sequence[str], access: Access = NO_MORE_THAN_64_MB, *, sizes: Mapping[int, int] | None = None
) -> Iterator[dict[int, Found]]:
    """The bytes at many addresses by their number, in groups that are in memory together, each address once.

    An object over ``access.max_bytes`` is not read to its end and comes back as ``too_many_bytes``. ``sizes``: of
    objects that a listing told, in bytes. What is not found is looked for under the other Unicode form of its name.
    Addresses of :func:`retailray.storage.embedded_address` give the bytes that lie in a row of a Parquet file.
    """
    sizes = dict(sizes or {})
    embedded = {at: place for at, address in enumerate(addresses) if (place := parse_embedded(address))}
    if embedded:
        yield {at: _limited(found, addresses[at], access) for at, found in fetch_embedded(embedded).items()}
    members = {at: one for at, address in enumerate(addresses) if (one := parse_member(address))}
    if members:
        yield from _of_archives(members, addresses, access)
    others = [at for at in range(len(addresses)) if at not in embedded and at not in members]
    for start in range(0, len(others), AT_ONCE):
        chosen = others[start : start + AT_ONCE]
        settled = {at: error for at in chosen if (error := _refused(addresses[at], access))}
        open_ = [at for at in chosen if at not in settled]
        sizes |= {at: size for at in open_ if (size := _local_size(addresses[at])) is not None}
        first = [at for at in open_ if at not in sizes]
        found = _fetch({at: addresses[at] for at in first}, access, FIRST_BYTES + 1)
        large = [at for at in first if isinstance(data := found[at], bytes) and len(data) > FIRST_BYTES]
        sizes |= {at: _size(addresses[at], access) for at in large}
        done = {at: data for at, data in found.items() if at not in large}
        group = settled | _other_forms(done, addresses, access)
        if group:
            yield group
        del found, done, group
        known = [at for at in open_ if at in sizes]
        too_large = [at for at in known if sizes[at] > access.max_bytes]
        if too_large:
            yield {at: _too_large(addresses[at], access) for at in too_large}
        for part in _packed([at for at in known if at not in too_large], sizes):
            read = _fetch({at: addresses[at] for at in part}, access, access.max_bytes + 1)
            yield {
                at: _limited(data, addresses[at], access) for at, data in _other_forms(read, addresses, access).items()
            }


def fetch_many(addresses: Sequence[str], access: Access = NO_MORE_THAN_64_MB) -> list[Found]:
    """All of them in order, for a few; see :func:`fetch_groups`."""
    results: dict[int, Found] = {}
    for group in fetch_groups(addresses, access):
        results |= group
    return [results[at] for at in range(len(addresses))]


def fetch_in_turn(addresses: Sequence[str], access: Access = NO_MORE_THAN_64_MB) -> Iterator[tuple[int, Found]]:
    """(number, bytes or error), for those who need not hold them all."""
    for start in range(0, len(addresses), AT_ONCE):
        for group in fetch_groups(addresses[start : start + AT_ONCE], access):
            yield from ((start + at, found) for at, found in sorted(group.items()))


def _packed(numbers: list[int], sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """In order, as many together as are in memory together."""
    part: list[int] = []
    total = 0
    for at in numbers:
        if part and total + sizes[at] > GROUP_BYTES:
            yield part
            part, total = [], 0
        part.append(at)
        total += sizes[at]
    if part:
        yield part


def _limited(found: Found, address: str, access: Access) -> Found:
    return _too_large(address, access) if isinstance(found, bytes) and len(found) > access.max_bytes else found


def _too_large(address: str, access: Access) -> ImageError:
    return image_error(TooLarge(f"{address}: over catalog.max_bytes = {access.max_bytes}"), address)


def _of_archives(members: Mapping[int, Member], addresses: Sequence[str], access: Access) -> Iterator[dict[int, Found]]:
    """Files of archives, of which those on the web are not read: they would be asked for without our rules."""
    refused = {name: _archive_refused(name, access) for name in {one.archive for one in members.values()}}
    yield {at: error for at, one in members.items() if (error := refused[one.archive])}
    allowed = {at: one for at, one in members.items() if not refused[one.archive]}
    archives = sorted({one.archive for one in allowed.values()})
    versions = {name: identity or "" for name, identity in zip(archives, identities(archives), strict=True)}
    for group in fetch_members(allowed, access.max_bytes, versions, group_bytes=GROUP_BYTES):
        yield {at: _limited(found, addresses[at], access) for at, found in group.items()}


def _archive_refused(archive: str, access: Access) -> ImageError | None:
    if is_web(archive):
        return image_error(
            NotAllowed(f"{archive}: archives are read from disks and buckets; download it first"), archive
        )
    return _refused(archive, access)


def _refused(address: str, access: Access) -> ImageError | None:
    """What is not to be asked for at all: devices and pipes never end, and links may lead anywhere."""
    if not is_local(address):
        return None
    try:
        path = store_of(address)[1]
        mode = os.stat(path).st_mode
        out = leads_out(path, access)
    except StorageError as error:
        return ImageError("bad_address", str(error))
    except (OSError, ValueError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError)):
            return None  # reading says it better
        return ImageError("bad_address", f"{address[:200]!r}: {' '.join(str(error).split())[:300]}")
    if out:
        why = f"{address}: a link leads it to {out}; name that folder in catalog.allow"
        return image_error(NotAllowed(why), address)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return ImageError("bad_address", f"{path}: not a file but a device, pipe or socket")
    return None


def _local_size(address: str) -> int | None:
    if not is_local(address):
        return None
    try:
        return os.stat(store_of(address)[1]).st_size
    except OSError:
        return 0  # reading says why


def _size(address: str, access: Access) -> int:
    """Of an object in a store; the limit where it does not tell, so that it is read alone."""
    if is_web(address):
        return min(access.max_bytes, GROUP_BYTES)
    store, path = store_of(address)
    try:
        return int(with_deadline(address, lambda: store.fs.size(path)) or access.max_bytes)
    except StorageError:
        return access.max_bytes  # reading says why


def _other_forms(found: dict[int, Found], addresses: Sequence[str], access: Access) -> dict[int, Found]:
    missing = [at for at, data in found.items() if isinstance(data, ImageError) and data.code == "not_found"]
    for at in missing:
        for form in other_unicode_forms(addresses[at]):
            again = _fetch({at: form}, access, access.max_bytes + 1)[at]
            if isinstance(again, bytes):
                found[at] = again
    return found


def _fetch(addresses: dict[int, str], access: Access, up_to: int) -> dict[int, Found]:
    """The first ``up_to`` bytes at every address."""
    results: dict[int, Found] = {}
    groups: dict[int, tuple[object, list[tuple[int, str]]]] = {}
    web = {at: address for at, address in addresses.items() if is_web(address)}
    if web:
        from retailray.storage import http  # its client takes a third of a second to import

        found = with_deadline(min(web.values()), lambda: http.fetch(list(web.values()), access, up_to))
        results |= dict(zip(web, found, strict=True))
    for at, address in addresses.items():
        if at in web:
            continue
        try:
            store, path = store_of(address, of_thread=True)
            fs = store.fs
        except StorageError as error:
            results[at] = ImageError("bad_address", str(error))
            continue
        groups.setdefault(id(fs), (fs, []))[1].append((at, path))
    for fs, members in groups.values():
        values = _cat_with_retries(fs, sorted({path for _, path in members}), up_to)
        for at, path in members:
            value = values[path]
            results[at] = value if isinstance(value, bytes) else image_error(value, addresses[at])
    return results


def _cat_with_retries(fs: object, paths: list[str], up_to: int) -> dict[str, Any]:
    """Read objects concurrently and retry transient failures, as :func:`with_retries` does."""
    found = _cat(fs, paths, up_to)
    for attempt in range(ROUNDS - 1):
        again = [path for path, value in found.items() if isinstance(value, BaseException) and is_transient(value)]
        if not again:
            break
        back_off(attempt)
        found |= _cat(fs, again, up_to)
    return found


def _cat(fs: fsspec.AbstractFileSystem, paths: list[str], up_to: int) -> dict[str, object]:
    """Bytes or exception by path. ``cat_ranges`` and not ``cat``, which takes ``*`` and ``[`` in names for patterns."""
    try:
        found = fs.cat_ranges(paths, 0, _ends(fs, paths, up_to), on_error="return")
    except Exception as error:  # whatever the client raises for the whole group holds for each of its members
        return dict.fromkeys(paths, error)
    return {path: b"" if _is_empty(value) else value for path, value in zip(paths, found, strict=True)}


def _ends(fs: object, paths: list[str], up_to: int) -> int | list[int]:
    """Where reading ends: files of this machine take memory for all the bytes that they are asked for."""
    if not isinstance(fs, LocalFileSystem):
        return up_to
    ends = []
    for path in paths:
        size = 0
        with contextlib.suppress(OSError):  # reading says why
            size = os.stat(path).st_size
        ends.append(min(size, up_to) or up_to)
    return ends


def _is_empty(value: object) -> bool:
    """True for how stores refuse a range of an object of no bytes."""
    cause = value.__cause__ if isinstance(value, BaseException) else None
    return any(
        "InvalidRange" in str(error) or status_of(error) == 416
        for error in (value, cause)
        if isinstance(error, BaseException)
    )
