"""Azure Blob storage: adlfs reads and writes, and its client of Azure's lists and writes under conditions."""

from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import adlfs
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry
from fsspec.asyn import sync

from retailray.storage.stores import Listed, ObjectStore, OneVersion

PAGE = 5000
CONNECT_S, READ_S, TRIES = 5, 30, 3
T = TypeVar("T")


class _FileSystem(adlfs.AzureBlobFileSystem):
    """adlfs, whose client waits a second before it asks again, as those of the other stores, and not a quarter of a
    minute: a lease has to be renewed sooner."""

    def do_connect(self) -> None:
        super().do_connect()
        first: Any = self.service_client  # type: ignore[has-type]
        policy = ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=TRIES)
        self.service_client = BlobServiceClient(first.url, credential=first.credential, retry_policy=policy)


def azure_store(account: str) -> "AzureStore":
    """``account``: '' where the environment names none."""
    named: dict[str, Any] = {"account_name": account} if account else {}
    named |= {"connection_timeout": CONNECT_S, "read_timeout": READ_S}
    return AzureStore(_FileSystem(**named, use_listings_cache=False, skip_instance_cache=True), account)


class AzureStore(ObjectStore):
    """``az://``. Credentials come from ``AZURE_STORAGE_*``, or from the machine's identity."""

    def __init__(self, fs: Any, account: str) -> None:
        super().__init__(fs, "az")
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

        blob = self._blob(path)
        found = self._run(self._details(blob))
        condition = {"etag": found.etag, "match_condition": MatchConditions.IfNotModified}

        async def read(start: int, end: int) -> bytes:
            answer = await blob.download_blob(offset=start, length=end - start, **condition)
            return await answer.readall()

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
        container, _, prefix = folder.partition("/")
        client = self.fs.service_client.get_container_client(container)
        pages = client.list_blobs(name_starts_with=f"{prefix}/" if prefix else None, results_per_page=PAGE).by_page()

        async def next_page() -> list[Listed] | None:
            try:
                page = await anext(pages)
            except StopAsyncIteration:
                return None
            found = [(blob.name, blob.size, blob.etag) async for blob in page]
            return [
                Listed(self.address(f"{container}/{name}"), f"{size}-{tag.strip(chr(34))}", size)
                for name, size, tag in found
            ]

        while (listed := self._run(next_page())) is not None:
            yield listed
