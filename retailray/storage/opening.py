"""Which store answers for an address, and what of the environment its client reads."""

import functools
import os
import threading

import fsspec

from retailray.errors import StorageError
from retailray.storage.addresses import HOSTS, STORES, canonical, is_uri, split_azure
from retailray.storage.failures import storage_error
from retailray.storage.stores import LocalStore, ObjectStore

# schemes that open a store; fsspec's others read through other filesystems, archives and programs
SCHEMES = ("file", *STORES, *HOSTS)
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


def store_of(address: str, *, of_thread: bool = False) -> tuple[ObjectStore, str]:
    """The store of an address, and the path in it.

    ``of_thread``: with connections of this thread alone, for those who fetch much: threads that share a client of S3
    fetch a quarter less in the same time. The main thread has the shared one, since a client takes 0.1 s to be made.

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
            own = of_thread and scheme == "s3" and threading.current_thread() is not threading.main_thread()
            owner = threading.get_ident() if own else 0
            return _cloud_store(scheme, account, found, (os.getpid(), owner)), path
        if scheme in ("http", "https"):
            return ObjectStore(fsspec.filesystem(scheme)), address
        # `::` in an address would be a chain of filesystems to fsspec
        if "::" in address:
            raise StorageError(f"{address[:200]}: `::` is not read in addresses of {scheme}://")
        fs, path = fsspec.core.url_to_fs(address)
        return ObjectStore(fs), path
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
    return LocalStore(fsspec.filesystem("file"))


@functools.lru_cache(32)
def _cloud_store(scheme: str, account: str, connection: tuple[str | None, ...], owner: tuple[int, int]) -> ObjectStore:
    """One for all threads of a process or for one of them, another one where the environment names another endpoint."""
    return _CLOUDS[scheme](account)


def _s3(account: str) -> ObjectStore:
    from retailray.storage.s3 import s3_store

    return s3_store()


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
