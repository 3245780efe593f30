"""Which client answers for an address, how long it is waited for, and what its failures say."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from retailray.errors import StorageError
from retailray.storage.addresses import HOSTS, STORES, canonical, is_uri

T = TypeVar("T")

PATIENCE_S = 1800.0  # for whole objects, which may be large; the client's own time-outs end what is stuck
DEADLINE_S = 15.0  # for one look at a store before work starts; a user waits 20 s at most for a clear line
ROUNDS, BACK_OFF_S = 4, 0.5  # tries, each with the client's own retries, and the first wait [s]
# for a store that answers, and asks for time: object stores divide a busy prefix within minutes
SLOWED_DOWN_S, LONGEST_WAIT_S = 300.0, 20.0
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


def filesystem(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of an address and the path inside it.

    Raises:
        StorageError: the scheme is unknown or its package is not installed.
    """
    address = canonical(address)
    options = S3_OPTIONS if address.startswith("s3://") else {}
    if address.startswith("file://"):
        raise StorageError(f"{address}: names a file of another host; only file:///path is read")
    scheme = address.partition("://")[0].lower() if is_uri(address) else "file"
    if scheme not in SCHEMES:
        raise StorageError(f"{address[:200]}: {scheme}:// is no kind of store; those are {', '.join(SCHEMES)}")
    try:  # not url_to_fs, which takes `::` in a name for a chain of filesystems
        kind = fsspec.get_filesystem_class(scheme)
        fs, path = kind(**kind._get_kwargs_from_urls(address), **options), kind._strip_protocol(address)
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
    if isinstance(error, IsADirectoryError):
        return f"{address}: a folder, and a file is expected"
    if isinstance(error, NotADirectoryError):
        return f"{address}: a part of its path is a file, and a folder is expected"
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


def with_deadline(
    address: str, action: Callable[[], T], *, deadline_s: float = PATIENCE_S, busy_s: float = SLOWED_DOWN_S
) -> T:
    """Run ``action``; every failure becomes a one-line :class:`StorageError` that names ``address``.

    ``deadline_s``: of one try. ``busy_s``: for how long it is tried again where the store says that it is busy.
    """
    started, attempt = time.monotonic(), 0
    while True:
        try:
            return _once(address, action, deadline_s)
        except StorageError as error:
            if not asks_for_time(error) or time.monotonic() - started >= busy_s:
                raise
        back_off(attempt)
        attempt += 1


def _once(address: str, action: Callable[[], T], deadline_s: float) -> T:
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
        raise StorageError(describe(TimeoutError(f"no answer within {deadline_s:.0f} s"), address))
    if isinstance(done.get("error"), StorageError):
        raise done["error"]
    if "error" in done:
        raise StorageError(describe(done["error"], address)) from done["error"]
    return done["value"]


def with_retries(action: Callable[[], T]) -> T:
    """Call ``action`` and retry transient failures up to :data:`ROUNDS` times with exponential back-off and jitter.

    The client's own retries are quick ones. Jitter keeps throttled tasks from coming back together. A throttling store
    is retried by :func:`with_deadline`.
    """
    for attempt in range(ROUNDS - 1):
        try:
            return action()
        except Exception as error:
            if not is_transient(error) or asks_for_time(error):
                raise
            back_off(attempt)
    return action()


def asks_for_time(error: BaseException) -> bool:
    """True for the answers of a store that is there and busy: SlowDown, 429, 500 and 503."""
    seen: BaseException | None = error
    while seen:
        busy = isinstance(seen, OSError) and seen.errno == errno.EBUSY
        if busy or (_status(seen) or 0) in (429, 500, 503):
            return True
        seen = seen.__cause__
    return False


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of a client carries."""
    answer = getattr(error, "response", None)  # botocore's
    if isinstance(answer, dict):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None)


def is_transient(error: BaseException) -> bool:
    """True for what may be over in a moment: time-outs, resets, truncated bodies, 5xx, SlowDown."""
    lasting = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)
    if isinstance(error, (*lasting, StorageError)):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def back_off(attempt: int) -> None:
    time.sleep(wait_before(attempt))


def wait_before(attempt: int) -> float:
    """Seconds before the next try: they grow, and are random."""
    return min(LONGEST_WAIT_S, BACK_OFF_S * 2**attempt) * random.uniform(0.5, 1.5)


def check_readable(address: str) -> None:
    """Fail within :data:`DEADLINE_S` if nothing can be read at ``address`` (a file, a folder or a pattern).

    Raises:
        StorageError: unreachable, refused, or nothing there.
    """

    def look() -> None:
        fs, path = filesystem(address)
        if not fs.exists(path) and not fs.glob(path):
            raise FileNotFoundError(address)

    with_deadline(address, look, deadline_s=DEADLINE_S, busy_s=0)  # somebody waits for a clear line
