"""S3 and what speaks its protocol: s3fs reads and writes, botocore lists, a thousand objects a request."""

import errno
import functools
import os
import urllib.parse
from collections.abc import Iterator
from typing import Any

import s3fs

from retailray.storage.stores import Listed, ObjectStore

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


def s3_store() -> "S3Store":
    fs = s3fs.S3FileSystem(skip_instance_cache=True, **S3_OPTIONS)
    fs.retries = _S3FS_RETRIES
    return S3Store(fs)


class S3Store(ObjectStore):
    """``s3://``. Credentials come from where botocore looks for them."""

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
        return s3_pages(folder, after, up_to)


def _has_no_conditions(error: OSError) -> bool:
    """True where a store says that it does not know conditional puts; not for time-outs and the like."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return error.errno == errno.ENOSYS or code in ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")


def s3_pages(folder: str, after: str, up_to: str) -> Iterator[list[Listed]]:
    """Objects below ``bucket/prefix`` in the order of their keys' bytes; ``after``, ``up_to``: ``bucket/key``."""
    from retailray.storage.client import with_deadline, with_retries

    bucket, _, prefix = folder.partition("/")
    client = _client()
    request: dict[str, object] = {
        "Bucket": bucket,
        "Prefix": f"{prefix}/" if prefix else "",
        "StartAfter": after.removeprefix(f"{bucket}/"),
        "EncodingType": "url",  # by whom it is set, decodes the keys: most have nothing to decode
    }
    last = up_to.removeprefix(f"{bucket}/").encode()
    while request:
        # page by page and not by botocore's paginator, which cannot ask for a page again
        ask = functools.partial(client.list_objects_v2, **request)
        page = with_deadline(f"s3://{folder}", functools.partial(with_retries, ask), deadline_s=None)
        quoted = page.get("EncodingType") == "url"
        found = [
            (_decoded(item["Key"]) if quoted else item["Key"], item.get("ETag"), item["Size"])
            for item in page.get("Contents", [])
        ]
        within = [one for one in found if one[0].encode() <= last] if last else found
        yield [Listed(f"s3://{bucket}/{key}", f"{size}-{tag}", size) for key, tag, size in within]
        token = page.get("NextContinuationToken") if len(within) == len(found) else None
        request = request | {"ContinuationToken": token} if token else {}


def _decoded(key: str) -> str:
    return urllib.parse.unquote_plus(key) if "%" in key or "+" in key else key


def _client() -> Any:
    """botocore's own, which threads may share."""
    import botocore.config
    import botocore.session

    session = botocore.session.get_session()
    # nobody asks when an object was written, and reading a thousand of these times takes three quarters of a page's
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    options = botocore.config.Config(**S3_OPTIONS["config_kwargs"])
    return session.create_client("s3", os.environ.get("AWS_REGION"), config=options)
