"""Listings of S3, a thousand objects a request."""

import functools
import os
import urllib.parse
from collections.abc import Iterator
from typing import Any

from retailray.storage.client import with_deadline, with_retries
from retailray.storage.stores import S3_OPTIONS, Listed


def s3_pages(folder: str, after: str, up_to: str) -> Iterator[list[Listed]]:
    """Objects below ``bucket/prefix`` in the order of their keys' bytes; ``after``, ``up_to``: ``bucket/key``."""
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
