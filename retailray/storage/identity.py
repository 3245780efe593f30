"""What tells one content at an address from another, without reading it."""

import concurrent.futures
import functools
import os
from collections.abc import Sequence

from retailray.errors import NotFound, StorageError
from retailray.storage.addresses import canonical, is_local, other_unicode_forms, parse_embedded, parse_member
from retailray.storage.client import with_deadline
from retailray.storage.opening import store_of

QUESTIONS = 16  # asked at a time


def identities(addresses: Sequence[str]) -> list[str | None]:
    """What tells one content at an address from another, without reading it; None where the store cannot tell.

    Object stores: ETag (or time of change) and size, by a question each. Local files: size, inode and the times of the
    last change of content and of inode, the second of which no program can set.
    """
    places = {address: file for address in set(addresses) if (file := _container(address))}
    if places:  # a row of a Parquet file and a file of an archive have the identity of their file
        files = sorted(set(places.values()))
        of_file = dict(zip(files, identities(files), strict=True))
        others = [address for address in addresses if address not in places]
        of_other = dict(zip(others, identities(others), strict=True))
        return [
            _identity_within(of_file[places[address]], address.removeprefix(places[address]))
            if address in places
            else of_other[address]
            for address in addresses
        ]
    found: dict[str, str | None] = {}
    remote = set()
    for address in set(addresses):
        if not address:
            found[address] = ""
        elif is_local(address):
            found[address] = _local_identity(canonical(address))
        else:
            remote.add(address)
    if remote:
        found |= _remote_identities(remote)
    return [found[address] for address in addresses]


def _container(address: str) -> str | None:
    """The file that holds what an address names."""
    if place := parse_embedded(address):
        return place[0]
    member = parse_member(address)
    return member.archive if member else None


def _identity_within(file_identity: str | None, place: str) -> str | None:
    return None if file_identity is None else f"{file_identity}{place}"


def _local_identity(path: str) -> str:
    missing = ""
    for name in (path, *other_unicode_forms(path)):  # as reading does
        try:
            return local_identity(os.stat(name))
        except (OSError, ValueError) as error:
            missing = missing or type(error).__name__
    return missing  # reading it will say so; when it appears, its identity changes


def local_identity(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _remote_identities(members: set[str]) -> dict[str, str | None]:
    """By single questions; :mod:`retailray.data.listing` is for many of one folder."""
    asked = sorted(members)
    with concurrent.futures.ThreadPoolExecutor(QUESTIONS) as pool:
        return dict(zip(asked, pool.map(_ask, asked), strict=True))


def _ask(address: str) -> str | None:
    try:
        store, name = store_of(address)
    except StorageError as error:
        return f"cannot be opened: {error}"  # as reading it will say
    for form in (name, *other_unicode_forms(name)):  # as reading does
        try:
            return with_deadline(address, functools.partial(store.head, form)).identity
        except NotFound:
            continue
        except StorageError:
            return None
    return "absent"
