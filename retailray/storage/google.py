"""Google Cloud Storage: gcsfs reads and writes, Google's own client lists and writes under conditions."""

import functools
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # or gcsfs asks every bucket's kind by gRPC first

import gcsfs
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.auth import load_credentials_from_dict
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from retailray.errors import Changed
from retailray.storage.opening import GOOGLE_KEY
from retailray.storage.stores import Listed, ObjectStore, OneVersion

PAGE = 1000
SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
# of one request, and of what its client asks again by itself; who asks has patience of his own
PATIENCE: dict[str, Any] = {"timeout": (5, 30), "retry": DEFAULT_RETRY.with_timeout(10.0)}


class _FileSystem(gcsfs.GCSFileSystem):
    """gcsfs, with the key that came with a job. It is pickled without: processes find it in their environment."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _file_system, ()


def _file_system() -> _FileSystem:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it writes errors to the terminal that it raises too
    key = os.environ.get(GOOGLE_KEY)
    token = {"token": load_credentials_from_dict(json.loads(key), scopes=[SCOPE])[0]} if key else {}
    return _FileSystem(**token, use_listings_cache=False, skip_instance_cache=True)


def google_store() -> "GoogleStore":
    return GoogleStore(_file_system())


class GoogleStore(ObjectStore):
    """``gs://``. Credentials come from where Google's clients look for them."""

    ranges = True

    @functools.cached_property
    def client(self) -> Any:
        credentials = self.fs.credentials.credentials or AnonymousCredentials()
        return storage.Client(project=self.fs.project or "none", credentials=credentials)

    def address(self, path: str) -> str:
        return f"gs://{path}"

    def identity(self, details: dict[str, Any]) -> str | None:
        return f"{details.get('size')}-{details['etag']}" if details.get("etag") else super().identity(details)

    def open(self, path: str) -> OneVersion:
        found = self._look(path)
        blob = found.bucket.blob(found.name, generation=found.generation)

        def read(start: int, end: int) -> bytes:
            try:  # as it is stored: what is unpacked on its way has other positions
                return blob.download_as_bytes(start=start, end=end - 1, raw_download=True, **PATIENCE)
            except (NotFound, PreconditionFailed) as error:
                raise Changed.of(self.address(path)) from error

        return OneVersion(found.size, read)

    def _look(self, path: str) -> Any:
        bucket, _, key = path.partition("/")
        blob = self.client.bucket(bucket).get_blob(key, **PATIENCE)
        if blob is None:
            raise FileNotFoundError(path)
        return blob

    def create(self, path: str, data: bytes) -> bool:
        return self._written(path, data, generation=0)

    def swap(self, path: str, data: bytes, before: bytes) -> bool:
        """By the object's generation, so one of two callers wins."""
        blob = self._look(path)
        if blob.download_as_bytes(raw_download=True, **PATIENCE) != before:
            return False
        return self._written(path, data, generation=blob.generation)

    def _written(self, path: str, data: bytes, *, generation: int) -> bool:
        bucket, _, key = path.partition("/")
        try:
            blob = self.client.bucket(bucket).blob(key)
            blob.upload_from_string(data, if_generation_match=generation, **PATIENCE)
        except PreconditionFailed:
            # a write whose answer was lost is tried again and refused
            return generation != 0 and self.get(path) == data
        return True

    def pages(self, folder: str, after: str = "", up_to: str = "") -> Iterator[list[Listed]]:
        bucket, _, prefix = folder.partition("/")
        first, last = (one.removeprefix(f"{bucket}/") for one in (after, up_to))
        found = self.client.list_blobs(
            bucket,
            prefix=f"{prefix}/" if prefix else None,
            start_offset=first or None,
            page_size=PAGE,
            fields="items(name,size,etag),nextPageToken",
            **PATIENCE,
        )
        for page in found.pages:
            blobs = [(blob.name, blob.etag, blob.size) for blob in page]
            within = [one for one in blobs if one[0] > first and (not last or one[0].encode() <= last.encode())]
            yield [Listed(f"gs://{bucket}/{name}", f"{size}-{etag}", size) for name, etag, size in within]
            if last and blobs and blobs[-1][0].encode() > last.encode():
                return
