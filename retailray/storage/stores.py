"""One interface for all stores: S3, Google Cloud Storage, Azure Blob, this machine's disk, and what fsspec reads."""

import errno
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
from retailray.storage.addresses import HOSTS, STORES, canonical, is_uri, split_azure
from retailray.storage.failures import storage_error

# schemes that open a store; fsspec's others read through other filesystems, archives and programs
SCHEMES = ("file", *STORES, *HOSTS)
# botocore's attempts and s3fs's own multiply: 3 × 2 keeps SlowDown survivable and a dead endpoint short
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 3, "mode": "standard"},
        "connect_timeout": 5,
        "read_timeout": 30,
        "max_pool_connections": 64,
    },
    "use_listings_cache": False,
}
_S3FS_RETRIES = 2
GOOGLE_KEY = "RETAILRAY_GOOGLE_KEY"  # the content of the file that GOOGLE_APPLICATION_CREDENTIALS names elsewhere
# what the clients of the stores read; it travels to workers and jobs, encrypted
WORKER_ENV = (
    GOOGLE_KEY,
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TENANT_ID",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_ANON",
)
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

    def __init__(self, fs: fsspec.AbstractFileSystem, scheme: str) -> None:
        self.fs, self.scheme = fs, scheme

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


class S3Store(ObjectStore):
    """S3 and what speaks its protocol: s3fs reads and writes, botocore lists."""

    ranges = True

    def address(self, path: str) -> str:
        return f"s3://{path}"

    def create(self, path: str, data: bytes) -> bool:
        try:
            return super().create(path, data)
        except OSError as error:
            # s3fs says EINVAL where it does not know the store's words for it (radosgw)
            if error.errno == errno.EINVAL and self.fs.exists(path):
                return False
            raise

    def swap(self, path: str, data: bytes, before: bytes) -> bool:
        """By ``If-Match``, so one of two callers wins; stores that say they have no conditions are compared with."""
        self.fs.invalidate_cache()
        tag = self.fs.info(path).get("ETag")
        if self.get(path) != before:
            return False
        if not tag:
            return super().swap(path, data, before)
        try:
            self.fs.pipe_file(path, data, IfMatch=tag.strip('"'))  # radosgw compares without quotes, others with either
        except OSError as error:
            now = self.get(path)
            if now != before:
                return now == data  # a put that came through, and whose answer was lost, is tried again and refused
            if not _has_no_conditions(error):
                raise
            self.put(path, data)
        return True

    def pages(self, folder: str, after: str = "", up_to: str = "") -> Iterator[list[Listed]]:
        from retailray.storage.s3_listing import s3_pages

        return s3_pages(folder, after, up_to)


def _has_no_conditions(error: OSError) -> bool:
    """True where a store says that it does not know conditional puts; not for time-outs and the like."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return error.errno == errno.ENOSYS or code in ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")


def store_of(address: str) -> tuple[ObjectStore, str]:
    """The store of an address, and the path in it.

    Raises:
        StorageError: the scheme is unknown or its package is not installed.
    """
    address = canonical(address)
    if address.startswith("file://"):
        raise StorageError(f"{address}: names a file of another host; only file:///path is read")
    scheme = address.partition("://")[0].lower() if is_uri(address) else "file"
    if scheme not in SCHEMES:
        raise StorageError(f"{address[:200]}: {scheme}:// is no kind of store; those are {', '.join(SCHEMES)}")
    path = address.partition("://")[2] if is_uri(address) else address
    try:
        if scheme == "file":
            return _local_store(), os.path.abspath(path) if path else path
        if scheme in _CLOUDS:
            account, path = split_azure(path) if scheme == "az" else ("", path)
            found = tuple(os.environ.get(name) for name in _CONNECTION[scheme])
            return _cloud_store(scheme, account, found, os.getpid()), path
        if scheme in ("http", "https"):
            return ObjectStore(fsspec.filesystem(scheme), scheme), address
        # `::` in an address would be a chain of filesystems to fsspec
        if "::" in address:
            raise StorageError(f"{address[:200]}: `::` is not read in addresses of {scheme}://")
        fs, path = fsspec.core.url_to_fs(address)
        return ObjectStore(fs, scheme), path
    except StorageError:
        raise
    except ImportError as error:
        extra = {"gs": "gcs", "az": "azure"}.get(scheme)
        way = f"pip install 'retailray[{extra}]'" if extra else "install the package that it names"
        raise StorageError(f"{address}: {scheme}:// needs a package that is not installed ({error}); {way}") from error
    except Exception as error:  # filesystems that connect when they are made raise whatever their client does
        if "with credentials" in str(error):  # adlfs: neither a connection string nor the name of an account
            raise storage_error(error, address) from error
        raise StorageError(f"{address}: cannot be opened ({type(error).__name__}: {error})") from error


@functools.cache
def _local_store() -> LocalStore:
    return LocalStore(fsspec.filesystem("file"), "file")


@functools.lru_cache(16)
def _cloud_store(scheme: str, account: str, connection: tuple[str | None, ...], pid: int) -> ObjectStore:
    """One for all threads of a process, another one where the environment names another endpoint."""
    return _CLOUDS[scheme](account)


def _s3(account: str) -> ObjectStore:
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True, **S3_OPTIONS)
    fs.retries = _S3FS_RETRIES
    return S3Store(fs, "s3")


def _google(account: str) -> ObjectStore:
    from retailray.storage.google import google_store

    return google_store()


def _azure(account: str) -> ObjectStore:
    from retailray.storage.azure import azure_store

    return azure_store(account)


_CLOUDS = {"s3": _s3, "gs": _google, "az": _azure}
# another store is made where one of them changes, so that what was mended in a notebook is mended
_CONNECTION = {
    scheme: tuple(name for name in (*WORKER_ENV, *more) if name.startswith(prefixes))
    for scheme, prefixes, more in (
        ("s3", ("AWS_",), ("AWS_PROFILE",)),
        ("gs", ("GOOGLE", "STORAGE_EMULATOR", GOOGLE_KEY), ("GOOGLE_APPLICATION_CREDENTIALS",)),
        ("az", ("AZURE_",), ()),
    )
}
