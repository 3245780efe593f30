"""What went wrong at an address, in one line and of one kind, whatever client said it."""

import asyncio
import errno
import os
from typing import NoReturn

from retailray.errors import (
    AccessDenied,
    Changed,
    ImageError,
    NotAllowed,
    NotFound,
    StorageError,
    Throttled,
    TimedOut,
    TooLarge,
    Unavailable,
)

# what the clients of each store read their credentials and their endpoint from, for messages
ADVICE = {
    "s3": ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS or the machine's service account", "STORAGE_EMULATOR_HOST"),
    "az": (
        "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
        "AZURE_STORAGE_SAS_TOKEN or a managed identity",
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
}
_THROTTLED = (429, 500, 503)  # of a store that is there and asks for time
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError)


def storage_error(error: BaseException, address: str) -> StorageError:
    """The error of a client as one of ours: its kind, and one line that says what to look at next."""
    if isinstance(error, StorageError):
        return error
    scheme = address.partition("://")[0] if "://" in address else "file"
    credentials, endpoint = ADVICE.get(scheme, ("its permissions", ""))
    name, text = type(error).__name__, " ".join(str(error).split())[:300]
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{address}: a folder, and a file is expected")
    if isinstance(error, NotADirectoryError):
        return StorageError(f"{address}: a part of its path is a file, and a folder is expected")
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text or status == 404:
        return NotFound(f"{address}: not found (no such file, object or bucket)")
    if _is_changed(error):
        return Changed.of(address)
    refused = isinstance(error, PermissionError) or status in (401, 403)
    if refused or any(word in text for word in ("AccessDenied", "Forbidden")) or name == "ClientAuthenticationError":
        return AccessDenied(f"{address}: access denied ({text}); check {credentials}")
    if "Credential" in name or "Unable to locate credentials" in text or "with credentials" in text:
        return AccessDenied(f"{address}: no credentials ({text}); set {credentials}")
    if _is_no_answer(error):
        if scheme not in ADVICE:
            return TimedOut(f"{address}: no answer ({name}: {text})")
        where = os.environ.get(endpoint) or (os.environ.get("AWS_ENDPOINT_URL") if scheme == "s3" else None)
        shown = where if where and scheme != "az" else "the default endpoint"  # a connection string holds a key
        return TimedOut(f"{address}: no answer from {shown} ({name}: {text}); check {endpoint} and the network")
    kind = Throttled if asks_for_time(error) else Unavailable if is_transient(error) else StorageError
    return kind(f"{address}: {name}: {text}")


def raise_storage_error(error: BaseException, address: str) -> NoReturn:
    """Raise what :func:`storage_error` makes of an error; one of ours as it is, or it would be its own cause."""
    found = storage_error(error, address)
    if found is error:
        raise found
    raise found from error


_CODES = {
    NotFound: "not_found",
    AccessDenied: "access_denied",
    TimedOut: "timeout",
    TooLarge: "too_many_bytes",
    NotAllowed: "not_allowed",
}


def image_error(error: BaseException, address: str) -> ImageError:
    """The error of a client as the error of one image."""
    if isinstance(error, ValueError) and "null byte" in str(error):
        return ImageError("bad_address", f"{address!r}: {error}")
    found = storage_error(error, address)
    is_folder = isinstance(error, IsADirectoryError | NotADirectoryError)
    return ImageError("not_found" if is_folder else _CODES.get(type(found), "fetch_failed"), str(found))


def _is_changed(error: BaseException) -> bool:
    """Whether another version of an object was asked for than there is. s3fs says it in an error of its own, or fails
    over the answer of a store that gives no reason (radosgw)."""
    seen: BaseException | None = error.__context__ if isinstance(error, TypeError) else error
    while seen:
        if status_of(seen) == 412 or type(seen).__name__ == "FileExpired":
            return True
        seen = seen.__cause__
    return False


def _is_no_answer(error: BaseException) -> bool:
    name = type(error).__name__
    return isinstance(error, TimeoutError | asyncio.TimeoutError) or any(
        word in name for word in ("Endpoint", "Connect", "Timeout", "ServiceRequestError")
    )


def asks_for_time(error: BaseException) -> bool:
    """True for the answers of a store that is there and busy: SlowDown, 429, 500 and 503."""
    seen: BaseException | None = error
    while seen:
        if type(seen).__name__ == "FileExpired":  # s3fs's, with the same number: what was read is no more
            return False
        busy = isinstance(seen, OSError) and seen.errno == errno.EBUSY
        if isinstance(seen, Throttled) or busy or (status_of(seen) or 0) in _THROTTLED:
            return True
        seen = seen.__cause__
    return False


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of a client carries."""
    answer = getattr(error, "response", None)  # botocore's
    if isinstance(answer, dict):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, Google's
        value = getattr(error, name, None)
        found = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else 0
        if 100 <= found < 600:
            return found
    return None


def is_transient(error: BaseException) -> bool:
    """True for what may be over in a moment: time-outs, resets, truncated bodies, 5xx, SlowDown."""
    if isinstance(error, (*_LASTING, StorageError)):  # a StorageError was raised after its own retries
        return False
    status = status_of(error)
    return status is None or status >= 500 or status in (408, 429)
