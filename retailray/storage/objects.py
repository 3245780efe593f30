"""Whole objects and files, read and written: a reader sees the old one or the new one, never a part."""

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Iterator
from typing import Any

from retailray.errors import StorageError
from retailray.storage.addresses import is_local, is_uri, parse_member
from retailray.storage.client import DEADLINE_S, PATIENCE_S, SLOWED_DOWN_S, filesystem, with_deadline, with_retries

READ_AHEAD = 4 << 20  # bytes, of files that are read piece by piece from a store


def exists(address: str) -> bool:
    fs, path = filesystem(address)
    return with_deadline(address, lambda: fs.exists(path))


def read_bytes(address: str) -> bytes:
    """The whole object. Raises StorageError."""
    fs, path = filesystem(address)
    return with_deadline(address, lambda: with_retries(lambda: fs.cat_file(path)))


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
    fs, path = filesystem(address)
    options = {} if is_local(address) else {"block_size": READ_AHEAD}
    file = with_deadline(address, lambda: fs.open(path, "rb", **options))
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


def _make_folder(address: str, path: str) -> None:
    """The folder of a local file. Raises StorageError."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:  # below /proc, say, or the folder is a file
        raise StorageError(f"{address}: its folder cannot be created") from error


def write_bytes(address: str, data: bytes, *, deadline_s: float = PATIENCE_S, busy_s: float = SLOWED_DOWN_S) -> None:
    """Write an object so that readers see the old one or the whole new one, never a part. Raises StorageError."""

    def write() -> None:
        fs, path = filesystem(address)
        if not is_local(address):
            with_retries(lambda: fs.pipe_file(path, data))  # one PUT: atomic in every object store
            return
        _make_folder(address, path)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)

    with_deadline(address, write, deadline_s=deadline_s, busy_s=busy_s)


def put_if_absent(address: str, data: bytes) -> bool:
    """Write a small object only if there is none: True for the one caller who wins, who is told by ``data``.

    Raises StorageError.
    """

    def write() -> bool:
        fs, path = filesystem(address)
        if is_local(address):
            _make_folder(address, path)
            partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
            with open(partial, "wb") as file:
                file.write(data)
            try:
                os.link(partial, path)  # fails where the name is taken, and never shows half of the data
            except FileExistsError:
                return False
            finally:
                os.unlink(partial)
            return True
        try:
            fs.pipe_file(path, data, mode="create")
        except OSError as error:
            # s3fs says FileExistsError, or EINVAL where it does not know the store's words for it (radosgw)
            if isinstance(error, FileExistsError) or (error.errno == errno.EINVAL and fs.exists(path)):
                fs.invalidate_cache()
                return fs.cat_file(path) == data  # a put whose answer was lost is tried again and refused
            raise
        return True

    return with_deadline(address, write, deadline_s=DEADLINE_S)


def compare_and_swap(address: str, data: bytes, *, before: bytes | None) -> bool:
    """Write a small object only if it still holds ``before`` (None: if there is none); False where it does not.

    In ``s3://`` by a conditional put, so one of two callers wins; elsewhere, and in stores that say they have none, it
    is compared and then replaced. Raises StorageError.
    """
    if before is None:
        return put_if_absent(address, data)

    def write() -> bool:
        fs, path = filesystem(address)
        fs.invalidate_cache()
        tag = fs.info(path).get("ETag") if address.startswith("s3://") else None
        if fs.cat_file(path) != before:
            return False
        try:
            if tag:
                fs.pipe_file(path, data, IfMatch=tag.strip('"'))  # radosgw compares without quotes, others with either
                return True
        except OSError as error:
            now = fs.cat_file(path)
            if now != before:
                return now == data  # a put that came through, and whose answer was lost, is tried again and refused
            if not _has_no_conditions(error):
                raise
        write_bytes(address, data)
        return True

    return with_deadline(address, write, deadline_s=DEADLINE_S)


def _has_no_conditions(error: OSError) -> bool:
    """True where a store says that it does not know conditional puts; not for time-outs and the like."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return error.errno == errno.ENOSYS or code in ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")


def is_exclusive(address: str, data: bytes) -> bool:
    """Whether the store refuses to create what is there: some take ``If-None-Match`` and ignore it.

    ``data``: what :func:`put_if_absent` has just written there, and what stands there afterwards.
    """
    if not put_if_absent(address, data + b"\n"):
        return True
    write_bytes(address, data)
    return False


def list_files(address: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder: full address → fsspec's details (``size`` in bytes at least). Raises StorageError."""
    fs, path = filesystem(address)
    found = with_deadline(address, lambda: fs.find(path, detail=True))
    return {fs.unstrip_protocol(name) if is_uri(address) else name: info for name, info in found.items()}


def remove_folder(address: str) -> None:
    fs, path = filesystem(address)
    if with_deadline(address, lambda: fs.exists(path)):
        with_deadline(address, lambda: fs.rm(path, recursive=True))


def remove_file(address: str) -> None:
    """Remove one object if it is there. Raises StorageError."""
    fs, path = filesystem(address)
    with contextlib.suppress(FileNotFoundError):
        with_deadline(address, lambda: fs.rm_file(path) if fs.exists(path) else None)


def arrow_filesystem(address: str) -> tuple[object, str]:
    """The pyarrow view of an address, for libraries that take a pyarrow filesystem (Ray Train does)."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    fs, path = filesystem(address)
    return (LocalFileSystem() if is_local(address) else PyFileSystem(FSSpecHandler(fs))), path
