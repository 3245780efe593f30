"""What lies below a folder of a store, page by page, without reading it."""

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from xml.etree import ElementTree

from retailray.storage.client import S3_OPTIONS, filesystem, with_deadline, with_retries
from retailray.storage.identity import remote_identity

_OBJECTS = "Objects"  # where _take_contents leaves those of a page
T = TypeVar("T")


def object_pages(folder: str, *, bounds: Sequence[str] = ()) -> Iterator[list[tuple[str, str | None, int]]]:
    """Address, identity and size [bytes] of every object below a folder of a store, page by page, in any order.

    ``s3://`` by botocore's pages of a thousand, so that memory does not grow with the bucket; other stores whole. A
    store tells page after page: ``bounds``, addresses in ascending order, cut the listing into ranges that are asked
    for at once. Raises StorageError.
    """
    if folder.startswith("s3://"):
        client = _s3_client()
        yield from _in_threads([functools.partial(_iterate_s3, client, folder, *ends) for ends in _ranges(bounds)])
        return
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    found = with_deadline(folder, lambda: fs.find(path, detail=True))
    yield [(fs.unstrip_protocol(name), remote_identity(info), info.get("size") or 0) for name, info in found.items()]


def _ranges(bounds: Sequence[str]) -> list[tuple[str, str]]:
    """(after, up to) for all that there is; '' has no end."""
    return list(zip(["", *bounds], [*bounds, ""], strict=True))


def _in_threads(sources: list[Callable[[], Iterator[T]]]) -> Iterator[T]:
    """What all of them yield, a few items ahead. Raises what one of them raises."""
    items: queue.Queue[Any] = queue.Queue(maxsize=2 * len(sources))
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put(item, timeout=0.1)

    def work(source: Callable[[], Iterator[T]]) -> None:
        try:
            for item in source():
                put((item, None))
                if stop.is_set():
                    return
            put((None, None))
        except Exception as error:
            put((None, error))

    try:
        for source in sources:
            threading.Thread(target=work, args=(source,), daemon=True).start()
        left = len(sources)
        while left:
            item, error = items.get()
            if error:
                raise error
            left -= item is None
            if item is not None:
                yield item
    finally:
        stop.set()


def _iterate_s3(client: Any, folder: str, after: str, up_to: str) -> Iterator[list[tuple[str, str | None, int]]]:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    request: dict[str, object] | None = {
        "Bucket": bucket,
        "Prefix": f"{prefix}/" if prefix else "",
        "StartAfter": after.removeprefix(f"s3://{bucket}/"),
    }
    last = up_to.removeprefix(f"s3://{bucket}/").encode()  # keys are in the order of their bytes
    while request:
        # page by page and not by botocore's paginator, which cannot ask for a page again
        page = with_deadline(
            folder, functools.partial(with_retries, functools.partial(client.list_objects_v2, **request))
        )
        found = page[_OBJECTS]
        within = [item for item in found if item[0].encode() <= last] if last else found
        yield [(f"s3://{bucket}/{key}", f"{size}-{tag}", size) for key, tag, size in within]
        token = page.get("NextContinuationToken") if len(within) == len(found) else None
        request = request | {"ContinuationToken": token} if token else None


def _s3_client() -> object:
    """botocore's own, which is safe to share between threads, with :func:`_take_contents`."""
    import botocore.config
    import botocore.session

    options = botocore.config.Config(**S3_OPTIONS["config_kwargs"])
    client = botocore.session.get_session().create_client("s3", os.environ.get("AWS_REGION"), config=options)
    # `*` comes before `s3`, where botocore parses every page in search of errors: it finds little left to parse
    client.meta.events.register("before-parse.*.ListObjectsV2", _take_contents)
    return client


def _take_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, object], **_: object) -> None:
    """Take key, tag and size of the objects out of a page before botocore reads it, which takes three times as long."""
    from botocore.compat import unquote_str

    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
    except ElementTree.ParseError:
        return  # a truncated page: botocore finds it too, and it is asked for again
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    quoted = root.findtext(f"{space}EncodingType") == "url"
    names = [f"{space}{name}" for name in ("Key", "ETag", "Size")]
    listed = []
    for item in root.findall(f"{space}Contents"):
        key, tag, size = map(item.findtext, names)
        if key and quoted:
            key = key.replace("%2F", "/")  # most keys have nothing else, and unquoting takes as long as parsing
            key = unquote_str(key) if "%" in key or "+" in key else key
        listed.append((key, tag, int(size or 0)))
    customized_response_dict[_OBJECTS] = listed
    root[:] = [part for part in root if part.tag != f"{space}Contents"]
    response_dict["body"] = ElementTree.tostring(root)
