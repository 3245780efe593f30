"""Whole objects and files, read and written: a reader sees the old one or the new one, never a part."""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retailray.errors import NotFound
from retailray.storage.addresses import is_local, parse_member
from retailray.storage.client import DEADLINE_S, PATIENCE_S, SLOWED_DOWN_S, with_deadline, with_retries
from retailray.storage.opening import store_of


def exists(address: str) -> bool:
    store, path = store_of(address)
    return with_deadline(address, lambda: store.fs.exists(path))


def is_file(address: str) -> bool:
    store, path = store_of(address)
    return with_deadline(address, lambda: store.fs.isfile(path))


def size(address: str) -> int:
    """Of an object, in bytes. Raises StorageError."""
    store, path = store_of(address)
    return int(with_deadline(address, lambda: with_retries(lambda: store.fs.size(path))) or 0)


def matching(pattern: str) -> list[str]:
    """Addresses that match a pattern of ``*``, ``?`` and ``[]``, in order. Raises StorageError."""
    store, path = store_of(pattern)
    return sorted(map(store.address, with_deadline(pattern, lambda: store.fs.glob(path))))


def read_bytes(address: str) -> bytes:
    """The whole object. Raises StorageError."""
    store, path = store_of(address)
    return with_deadline(address, lambda: with_retries(lambda: store.get(path)))


@contextlib.contextmanager
def open_binary(address: str) -> Iterator[object]:
    """A file to read piece by piece, from its start or anywhere (of a file within an archive: from its start alone).

    Raises StorageError, while it is read too.
    """
    if member := parse_member(address):
        from retailray.storage.archives import open_member  # which opens its archive by this

        with open_member(member) as inside, io.BufferedReader(inside, 1 << 20) as buffered:
            yield buffered
        return
    store, path = store_of(address)
    file = with_deadline(address, lambda: store.open(path))
    with contextlib.closing(file), io.BufferedReader(_Guarded(file, address), 1 << 20) as buffered:
        yield buffered


class _Guarded(io.RawIOBase):
    """A file whose failures are StorageErrors."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        at = self._file.tell()

        def read() -> bytes:
            self._file.seek(at)
            return self._file.read(len(buffer))

        data = with_deadline(self._address, lambda: with_retries(read))
        buffer[: len(data)] = data
        return len(data)


def write_bytes(address: str, data: bytes, *, deadline_s: float = PATIENCE_S, busy_s: float = SLOWED_DOWN_S) -> None:
    """Write an object so that readers see the old one or the whole new one, never a part. Raises StorageError."""
    store, path = store_of(address)
    put = functools.partial(store.put, path, data)
    retried = put if is_local(address) else functools.partial(with_retries, put)  # a full disk stays full
    with_deadline(address, retried, deadline_s=deadline_s, busy_s=busy_s)


def write_file(address: str, source: Path) -> None:
    """Write a file of this machine as :func:`write_bytes` does, without taking all of it into memory."""
    store, path = store_of(address)
    put = functools.partial(store.put_file, path, source)
    with_deadline(address, put if is_local(address) else functools.partial(with_retries, put))


def put_if_absent(address: str, data: bytes) -> bool:
    """Write a small object only if there is none: True for the one caller who wins, who is told by ``data``.

    Raises StorageError.
    """
    store, path = store_of(address)

    def create() -> bool:
        if store.create(path, data):
            return True
        # in a store, a write whose answer was lost is tried again by its client, and refused
        return not is_local(address) and store.get(path) == data

    return with_deadline(address, create, deadline_s=DEADLINE_S)


def compare_and_swap(address: str, data: bytes, *, before: bytes | None) -> bool:
    """Write a small object only if it still holds ``before`` (None: if there is none); False where it does not.

    In S3, Google Cloud Storage and Azure by a condition, so one of two callers wins; elsewhere, and in stores that say
    they have none, it is compared and then replaced. Raises StorageError.
    """
    if before is None:
        return put_if_absent(address, data)
    store, path = store_of(address)
    return with_deadline(address, lambda: store.swap(path, data, before), deadline_s=DEADLINE_S)


def is_exclusive(address: str, data: bytes) -> bool:
    """Whether the store refuses to create what is there: some take the condition and ignore it.

    ``data``: what :func:`put_if_absent` has just written there, and what stands there afterwards.
    """
    if not put_if_absent(address, data + b"\n"):
        return True
    write_bytes(address, data)
    return False


def list_files(address: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder: full address → fsspec's details (``size`` in bytes at least). Raises StorageError."""
    store, path = store_of(address)
    store.fs.invalidate_cache()
    found = with_deadline(address, lambda: store.fs.find(path, detail=True))
    return {store.address(name): info for name, info in found.items()}


def remove_folder(address: str) -> None:
    store, path = store_of(address)
    if with_deadline(address, lambda: store.fs.exists(path)):
        with_deadline(address, lambda: store.fs.rm(path, recursive=True))


def remove_file(address: str) -> None:
    """Remove one object if it is there. Raises StorageError."""
    store, path = store_of(address)
    with contextlib.suppress(NotFound):
        with_deadline(address, lambda: store.delete(path))


def arrow_filesystem(address: str) -> tuple[object, str]:
    """The pyarrow view of an address, for libraries that take a pyarrow filesystem (Ray Train does)."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    store, path = store_of(address)
    return (LocalFileSystem() if is_local(address) else PyFileSystem(FSSpecHandler(store.fs))), path


def folder_entries(folder: str) -> set[str]:
    """Names of what lies directly in a folder; none where there is no such folder. Raises StorageError."""
    store, path = store_of(folder)

    def look() -> set[str]:
        try:
            return {entry.rstrip("/").rpartition("/")[2] for entry in store.fs.ls(path, detail=False)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    return with_deadline(folder, look)
