"""One way to every address: local folders, ``s3://`` and whatever else fsspec knows.

Endpoint and credentials of object stores come from the usual environment variables, which fsspec's s3fs honours
in every process. Retries happen in the client; they are bounded so that a dead store is an answer and not a wait.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import io
import os
import posixpath
import random
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from retailray.errors import ImageError, StorageError

T = TypeVar("T")

PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")
PATIENCE_S = 1800.0  # for whole objects, which may be large; the client's own time-outs end what is stuck
DEADLINE_S = 15.0  # for one look at a store before work starts; a user waits 20 s at most for a clear line
LISTING_PAYS = 8  # objects; a listing brings a thousand for the price of one
AT_ONCE = 64  # objects in memory, of those that are fetched in turn
QUESTIONS = 16  # asked at a time, where there is no listing
ROUNDS, BACK_OFF_S = 4, 0.5  # of reading: tries, each with the client's own retries, and the first wait [s]
READ_AHEAD = 4 << 20  # bytes, of files that are read piece by piece from a store
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
WORKER_ENV = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
)


def is_uri(address: str) -> bool:
    """True for ``scheme://…``; plain paths are local."""
    return "://" in address


def normalize(address: str) -> str:
    """An address that means the same in every process: URIs stay, local paths become absolute.

    Raises:
        ValueError: there is a password in it.
    """
    if PASSWORD.search(address):
        raise ValueError(
            "a password in an address would stand in configs, logs and records; give it by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    address = canonical(address)
    return address.rstrip("/") if is_uri(address) else os.path.abspath(os.path.expanduser(address))


def join(root: str, *parts: str) -> str:
    """``root/part/…`` with ``.`` and ``..`` resolved; a part that is absolute or a URI replaces what is before it."""
    for part in parts:
        if is_uri(part) or part.startswith("/"):
            root = canonical(part)
            continue
        scheme, separator, path = root.rpartition("://")
        root = scheme + separator + posixpath.normpath(posixpath.join(path, part))
    return root


def canonical(address: str) -> str:
    """One spelling for one place: ``file:///x`` is ``/x``, ``s3a://`` is ``s3://``."""
    if address.startswith("s3a://"):
        return "s3://" + address.removeprefix("s3a://")
    return address.removeprefix("file://")


def parent(address: str) -> str:
    """The folder of an address."""
    return address.rsplit("/", 1)[0] or "/"


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec filesystem of an address and the path inside it.

    Raises:
        StorageError: the scheme is unknown or its package is not installed.
    """
    options = S3_OPTIONS if address.startswith(("s3://", "s3a://")) else {}
    try:
        fs, path = url_to_fs(address, **options)
    except Exception as error:  # filesystems that connect when they are made raise whatever their client does
        raise StorageError(f"{address}: cannot be opened ({type(error).__name__}: {error})") from error
    if options:
        fs.retries = _S3FS_RETRIES
    return fs, path


def describe(error: BaseException, address: str) -> str:
    """One line that says what went wrong at an address and what to look at next."""
    s3 = address.startswith(("s3://", "s3a://"))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the default endpoint"
    name, text = type(error).__name__, " ".join(str(error).split())[:300]
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
        return f"{address}: not found (no such file, object or bucket)"
    if isinstance(error, PermissionError) or "AccessDenied" in text or "Forbidden" in text:
        advice = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if s3 else "its permissions"
        return f"{address}: access denied ({text}); check {advice}"
    if "Credentials" in name:
        return f"{address}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, TimeoutError) or "Endpoint" in name or "Connect" in name or "Timeout" in name:
        if not s3:
            return f"{address}: no answer ({name}: {text})"
        return f"{address}: no answer from {endpoint} ({name}: {text}); check AWS_ENDPOINT_URL_S3 and the network"
    return f"{address}: {name}: {text}"


def guarded(address: str, action: Callable[[], T], *, deadline_s: float = PATIENCE_S) -> T:
    """Run ``action`` with a deadline; every failure becomes a one-line :class:`StorageError` that names ``address``."""
    done: dict[str, Any] = {}

    def work() -> None:
        try:
            done["value"] = action()
        except BaseException as error:  # handed to the caller's thread below
            done["error"] = error

    # a daemon thread, because a store that never answers must not hold the process at exit either
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise StorageError(describe(TimeoutError(f"gave up after {deadline_s:.0f} s"), address))
    if isinstance(done.get("error"), StorageError):
        raise done["error"]
    if "error" in done:
        raise StorageError(describe(done["error"], address)) from done["error"]
    return done["value"]


def patiently(action: Callable[[], T]) -> T:
    """Do it again after a while where it failed for the moment: the client's own retries are quick ones.

    Waits grow and are random, so that tasks that a store has slowed down do not come back together.
    """
    for attempt in range(ROUNDS - 1):
        try:
            return action()
        except Exception as error:
            if not _passes(error):
                raise
            _back_off(attempt)
    return action()


def _back_off(attempt: int) -> None:
    time.sleep(BACK_OFF_S * 2**attempt * random.uniform(0.5, 1.5))


def check_readable(address: str) -> None:
    """Fail within :data:`DEADLINE_S` if nothing can be read at ``address`` (a file, a folder or a pattern).

    Raises:
        StorageError: unreachable, refused, or nothing there.
    """

    def look() -> None:
        fs, path = filesystem(address)
        if not fs.exists(path) and not fs.glob(path):
            raise FileNotFoundError(address)

    guarded(address, look, deadline_s=DEADLINE_S)


def exists(address: str) -> bool:
    fs, path = filesystem(address)
    return guarded(address, lambda: fs.exists(path))


def read_bytes(address: str) -> bytes:
    """The whole object. Raises StorageError."""
    fs, path = filesystem(address)
    return guarded(address, lambda: patiently(lambda: fs.cat_file(path)))


@contextlib.contextmanager
def open_binary(address: str) -> Iterator[Any]:
    """A file to read piece by piece, from its start or anywhere. Raises StorageError, while it is read too."""
    fs, path = filesystem(address)
    options = {} if is_local(address) else {"block_size": READ_AHEAD}
    file = guarded(address, lambda: fs.open(path, "rb", **options))
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

        data = guarded(self._address, lambda: patiently(read))
        buffer[: len(data)] = data
        return len(data)


def write_bytes(address: str, data: bytes, *, deadline_s: float = PATIENCE_S) -> None:
    """Write an object so that readers see the old one or the whole new one, never a part. Raises StorageError."""

    def write() -> None:
        fs, path = filesystem(address)
        if not is_local(address):
            fs.pipe_file(path, data)  # one PUT: atomic in every object store
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)

    guarded(address, write, deadline_s=deadline_s)


def create(address: str, data: bytes) -> bool:
    """Write a small object only if there is none: True for the one caller who wins. Raises StorageError."""

    def write() -> bool:
        fs, path = filesystem(address)
        if is_local(address):
            os.makedirs(os.path.dirname(path), exist_ok=True)
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
                return False
            raise
        return True

    return guarded(address, write, deadline_s=DEADLINE_S)


def swap(address: str, data: bytes, *, before: bytes | None) -> bool:
    """Write a small object only if it still holds ``before`` (None: if there is none); False where it does not.

    In ``s3://`` by a conditional put, so one of two callers wins; elsewhere, and in stores that do not know its words,
    it is compared and then replaced. Raises StorageError.
    """
    if before is None:
        return create(address, data)

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
        except OSError:
            now = fs.cat_file(path)
            if now != before:
                return now == data  # a put that came through, and whose answer was lost, is tried again and refused
        write_bytes(address, data)
        return True

    return guarded(address, write, deadline_s=DEADLINE_S)


def is_local(address: str) -> bool:
    return not is_uri(address) or address.startswith("file://")


def list_files(address: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder: full address → fsspec's details (``size`` in bytes at least). Raises StorageError."""
    fs, path = filesystem(address)
    found = guarded(address, lambda: fs.find(path, detail=True))
    return {fs.unstrip_protocol(name) if is_uri(address) else name: info for name, info in found.items()}


def identities(addresses: Sequence[str]) -> list[str | None]:
    """What tells one content at an address from another, without reading it; None where the store cannot tell.

    Object stores: ETag (or time of change) and size, from listings where many objects share a folder. Local files:
    size, inode and the times of the last change of content and of inode, the second of which no program can set.
    """
    found: dict[str, str | None] = {}
    remote: dict[str, set[str]] = {}
    for address in set(addresses):
        if not address:
            found[address] = ""
        elif is_local(address):
            found[address] = _local_identity(canonical(address))
        else:
            remote.setdefault(address.split("://")[0], set()).add(address)
    for members in remote.values():
        found |= _remote_identities(members)
    return [found[address] for address in addresses]


def _local_identity(path: str) -> str:
    try:
        return local_identity(os.stat(path))
    except (OSError, ValueError) as error:
        return type(error).__name__  # reading it will say so; when it appears, its identity changes


def local_identity(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _remote_identities(members: set[str]) -> dict[str, str | None]:
    """One listing of all that the addresses share where that pays, single questions for what it does not name."""
    try:
        fs, _ = filesystem(min(members))
    except StorageError as error:
        return dict.fromkeys(members, f"cannot be opened: {error}")  # as reading it will say
    paths = {address: fs._strip_protocol(address) for address in members}
    fs.invalidate_cache()
    listed: dict[str, dict[str, Any]] = {}
    # a web page lists its links, which are not its files
    if len(members) >= LISTING_PAYS and not min(members).startswith("http"):
        shared = posixpath.commonpath(paths.values())
        with contextlib.suppress(StorageError, NotImplementedError):
            # '' where buckets differ: that would list everybody's
            listed = guarded(min(members), lambda: fs.find(shared, detail=True)) if shared else {}
    rest = sorted(address for address, name in paths.items() if name not in listed)
    with concurrent.futures.ThreadPoolExecutor(QUESTIONS) as pool:
        asked = dict(zip(rest, pool.map(lambda address: _ask(fs, address, paths[address]), rest), strict=True))
    return {address: remote_identity(listed[name]) for address, name in paths.items() if name in listed} | asked


def _ask(fs: Any, address: str, name: str) -> str | None:
    try:
        return remote_identity(guarded(address, lambda: fs.info(name)))
    except StorageError as error:
        return "absent" if isinstance(error.__cause__, FileNotFoundError) else None


def remote_identity(detail: dict[str, Any]) -> str | None:
    """What fsspec's details of an object say of its content; None where they cannot tell."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created"):
        if detail.get(key):
            return f"{detail.get('size')}-{detail[key]}"
    return None


def remove_folder(address: str) -> None:
    fs, path = filesystem(address)
    if guarded(address, lambda: fs.exists(path)):
        guarded(address, lambda: fs.rm(path, recursive=True))


def remove_file(address: str) -> None:
    """Remove one object if it is there. Raises StorageError."""
    fs, path = filesystem(address)
    with contextlib.suppress(FileNotFoundError):
        guarded(address, lambda: fs.rm_file(path) if fs.exists(path) else None)


def fetch_many(addresses: Sequence[str]) -> list[bytes | ImageError]:
    """The bytes of many objects, concurrently, in order; what cannot be fetched comes back as an ImageError."""
    results: list[bytes | ImageError | None] = [None] * len(addresses)
    groups: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for index, address in enumerate(addresses):
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
    return [value for value in results if value is not None]


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
        again = [path for path, value in found.items() if isinstance(value, BaseException) and _passes(value)]
        if not again:
            break
        _back_off(attempt)
        found |= _cat(fs, again)
    return found


def _passes(error: BaseException) -> bool:
    """True for what may be over in a moment: time-outs, resets, truncated bodies, 5xx, SlowDown."""
    lasting = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)
    if isinstance(error, (*lasting, StorageError)):
        return False
    answer = getattr(error, "response", None)  # botocore's
    status = (
        answer["ResponseMetadata"]["HTTPStatusCode"] if isinstance(answer, dict) else getattr(error, "status", None)
    )
    return status is None or status >= 500 or status in (408, 429)


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


def arrow_filesystem(address: str) -> tuple[Any, str]:
    """The pyarrow view of an address, for libraries that take a pyarrow filesystem (Ray Train does)."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    fs, path = filesystem(address)
    return (LocalFileSystem() if is_local(address) else PyFileSystem(FSSpecHandler(fs))), path
