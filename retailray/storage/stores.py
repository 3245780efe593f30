"""One interface for all stores: S3, Google Cloud Storage, Azure Blob, this machine's disk, and what fsspec reads."""

import functools
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from retailray.errors import StorageError
from retailray.storage.addresses import canonical

READ_AHEAD = 4 << 20  # bytes, of files that are read piece by piece from a store


class Listed(NamedTuple):
    """An object of a listing: its address, what identifies its content (None: the store does not say), bytes."""

    address: str
    identity: str | None
    size: int


class OneVersion(io.RawIOBase):
    """An object of a store as a file, read by ranges that all are of one version of it.

    ``read_range``: the bytes from one position to before another.
    """

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        self._size, self._read_range, self._at = size, read_range, 0
        self._held, self._held_at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self._size)
        if end <= start:
            return 0
        if self._held_at <= start < end <= self._held_at + len(self._held):
            data = self._held[start - self._held_at : end - self._held_at]
        elif end - start > READ_AHEAD:  # and not kept: a column of a table can be large
            data = self._whole(start, end)
        else:
            self._held, self._held_at = self._whole(start, min(start + READ_AHEAD, self._size)), start
            data = self._held[: end - start]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _whole(self, start: int, end: int) -> bytes:
        data = self._read_range(start, end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes were read where {end - start} were asked for")
        return data


class ObjectStore:
    """A store, through fsspec's client for it. Paths are as fsspec has them: ``bucket/key``, or a local path.

    Clouds override what fsspec has no word for: :meth:`swap` by a condition, and :meth:`pages` page by page. Errors are
    those of the client; :func:`retailray.storage.failures.storage_error` knows them all.
    """

    ranges = False  # whether a listing can begin at a key, so that several are asked for at once

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self.fs = fs

    def address(self, path: str) -> str:
        """The canonical address of a path."""
        return canonical(self.fs.unstrip_protocol(path))

    def identity(self, details: dict[str, Any]) -> str | None:
        """What fsspec's details of an object say of its content; None where they cannot tell."""
        for key in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created"):
            if details.get(key):
                return f"{details.get('size')}-{details[key]}"
        return None

    def head(self, path: str) -> Listed:
        """Raises FileNotFoundError."""
        self.fs.invalidate_cache()
        details = self.fs.info(path)
        return Listed(self.address(path), self.identity(details), details.get("size") or 0)

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """All bytes, or some. Raises FileNotFoundError."""
        return self.fs.cat_file(path, start=start, end=end)

    def open(self, path: str) -> Any:
        """A file to read piece by piece; an error where it is overwritten meanwhile. Raises FileNotFoundError."""
        return self.fs.open(path, "rb", block_size=READ_AHEAD)

    def put(self, path: str, data: bytes) -> None:
        """Readers see the old object or the new one, never a part."""
        self.fs.pipe_file(path, data)

    def put_file(self, path: str, source: Path) -> None:
        """The same, of a file of this machine, in parts: there is nothing before the last of them."""
        self.fs.put_file(str(source), path)

    def create(self, path: str, data: bytes) -> bool:
        """Write where nothing is. False where something is."""
        try:
            self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def swap(self, path: str, data: bytes, before: bytes) -> bool:
        """Write where ``before`` still stands. False where it does not.

        Here it is compared and then replaced, so of two callers both may win.
        """
        if self.get(path) != before:  # compared
            return False
        self.put(path, data)
        return True

    def pages(self, folder: str, after: str = "", up_to: str = "") -> Iterator[list[Listed]]:
        """Every object below a folder, page by page, in any order; ``after``, ``up_to``: paths of a store that has
        :attr:`ranges`, '' for all that there is."""
        from retailray.storage.client import with_deadline, with_retries

        self.fs.invalidate_cache()
        find = functools.partial(with_retries, functools.partial(self.fs.find, folder, detail=True))
        found = with_deadline(self.address(folder), find)
        yield [Listed(self.address(name), self.identity(one), one.get("size") or 0) for name, one in found.items()]

    def delete(self, path: str) -> None:
        """Raises FileNotFoundError."""
        self.fs.rm_file(path)


class LocalStore(ObjectStore):
    """Files of this machine, or of what is mounted there."""

    def address(self, path: str) -> str:
        return path

    def open(self, path: str) -> Any:
        return self.fs.open(path, "rb")

    def put(self, path: str, data: bytes) -> None:
        self._replace(path, lambda partial: partial.write_bytes(data))

    def put_file(self, path: str, source: Path) -> None:
        self._replace(path, lambda partial: shutil.copyfile(source, partial))

    def _replace(self, path: str, write: Callable[[Path], object]) -> None:
        partial = self._partial(path)
        try:
            write(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def create(self, path: str, data: bytes) -> bool:
        partial = self._partial(path)
        partial.write_bytes(data)
        try:
            os.link(partial, path)  # never shows half of the data
        except FileExistsError:  # the name is taken
            return False
        finally:
            partial.unlink()
        return True

    def _partial(self, path: str) -> Path:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except (FileNotFoundError, FileExistsError) as error:  # below /proc, say, or the folder is a file
            raise StorageError(f"{path}: its folder cannot be created") from error
        return Path(f"{path}.{uuid.uuid4().hex[:8]}.partial")
