"""Azure Blob storage: adlfs reads and writes, and its client of Azure's lists and writes under conditions."""

import functools
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import adlfs
from azure.identity.aio import DefaultAzureCredential
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry
from fsspec.asyn import sync

from retailray.errors import Changed, StorageError
from retailray.storage.addresses import AZURE_ACCOUNT
from retailray.storage.stores import Listed, ObjectStore, OneVersion

PAGE = 5000
CONNECT_S, READ_S, TRIES = 5, 30, 3
T = TypeVar("T")


def _client(url: str, credential: Any) -> BlobServiceClient:
    """One that waits a second before it asks again, as those of the other stores, and not a quarter of a minute: a
    lease has to be renewed sooner."""
    policy = ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=TRIES)
    return BlobServiceClient(url, credential, retry_policy=policy, connection_timeout=CONNECT_S, read_timeout=READ_S)


class _FileSystem(adlfs.AzureBlobFileSystem):
    """Of the account that the environment names, with its credentials."""

    def do_connect(self) -> None:
        super().do_connect()
        first: Any = self.service_client  # type: ignore[has-type]
        self.service_client = _client(first.url, first.credential)


class _OtherAccount(adlfs.AzureBlobFileSystem):
    """Of an account that an address names: keys and permissions of the environment are not for it."""

    def __init__(self, account_name: str, **options: Any) -> None:
        super().__init__(account_name, credential=DefaultAzureCredential(), **options)

    def do_connect(self) -> None:
        self.account_url = f"https://{self.account_name}.blob.core.windows.net"
        self.service_client = _client(self.account_url, self.credential)


def azure_store(account: str) -> "AzureStore":
    """``account``: '' for that of the environment. Raises StorageError: it is the name of none."""
    options = {"connection_timeout": CONNECT_S, "read_timeout": READ_S, "use_listings_cache": False}
    if not account:
        return AzureStore(_FileSystem(**options, skip_instance_cache=True), account)
    if not AZURE_ACCOUNT.fullmatch(account):
        raise StorageError(f"az://...@{account}: no storage account of core.windows.net has this name")
    return AzureStore(_OtherAccount(account, **options, skip_instance_cache=True), account)


class AzureStore(ObjectStore):
    """``az://``. Credentials come from ``AZURE_STORAGE_*``, or from the machine's identity."""

    def __init__(self, fs: Any, account: str) -> None:
        super().__init__(fs)
        self.account = account

    def address(self, path: str) -> str:
        container, _, key = path.partition("/")
        return f"az://{container}@{self.account}/{key}" if self.account else f"az://{path}"

    def identity(self, details: dict[str, Any]) -> str | None:
        tag = details.get("etag")
        return f"{details.get('size')}-{tag.strip(chr(34))}" if tag else super().identity(details)

    def _blob(self, path: str) -> Any:
        container, _, key = path.partition("/")
        return self.fs.service_client.get_blob_client(container, key)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def go() -> T:
            return await work

        return sync(self.fs.loop, go)

    def open(self, path: str) -> OneVersion:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        blob = self._blob(path)
        found = self._run(self._details(blob))
        condition = {"etag": found.etag, "match_condition": MatchConditions.IfNotModified}

        async def read(start: int, end: int) -> bytes:
            try:  # as it is stored: what is unpacked on its way has other positions
                answer = await blob.download_blob(offset=start, length=end - start, decompress=False, **condition)
                return await answer.readall()
            except (ResourceModifiedError, ResourceNotFoundError) as error:
                raise Changed.of(self.address(path)) from error

        return OneVersion(found.size, lambda start, end: self._run(read(start, end)))

    async def _details(self, blob: Any) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return await blob.get_blob_properties()
        except ResourceNotFoundError as error:
            raise FileNotFoundError(blob.blob_name) from error

    def create(self, path: str, data: bytes) -> bool:
        from azure.core.exceptions import ResourceExistsError

        try:
            self._run(self._blob(path).upload_blob(data, overwrite=False))
        except ResourceExistsError:
            return False
        return True

    def swap(self, path: str, data: bytes, before: bytes) -> bool:
        """By the object's ETag, so one of two callers wins."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError

        blob = self._blob(path)

        async def look() -> tuple[bytes, str]:
            await self._details(blob)
            answer = await blob.download_blob()
            return await answer.readall(), answer.properties.etag

        now, tag = self._run(look())
        if now != before:
            return False
        condition = {"etag": tag, "match_condition": MatchConditions.IfNotModified}
        try:
            self._run(blob.upload_blob(data, overwrite=True, **condition))
        except ResourceModifiedError:
            return self.get(path) == data  # a write whose answer was lost is tried again and refused
        return True

    def pages(self, folder: str, after: str = "", up_to: str = "") -> Iterator[list[Listed]]:
        from retailray.storage.client import with_deadline, with_retries

        container, _, prefix = folder.partition("/")
        client = self.fs.service_client.get_container_client(container)

        async def page_at(token: str | None) -> tuple[list[Listed], str | None]:
            found = client.list_blobs(name_starts_with=f"{prefix}/" if prefix else None, results_per_page=PAGE)
            pages = found.by_page(token)
            try:
                blobs = [(blob.name, blob.size, blob.etag) async for blob in await anext(pages)]
            except StopAsyncIteration:
                return [], None
            listed = [
                Listed(self.address(f"{container}/{name}"), f"{size}-{tag.strip(chr(34))}", size)
                for name, size, tag in blobs
            ]
            return listed, pages.continuation_token

        token: str | None = None
        while True:
            ask = functools.partial(lambda token: self._run(page_at(token)), token)
            page, token = with_deadline(self.address(folder), functools.partial(with_retries, ask), deadline_s=None)
            yield page
            if not token:
                return
