"""What lies below a folder of a store, page by page, without reading it."""

import contextlib
import functools
import gc
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from retailray.storage.failures import raise_storage_error
from retailray.storage.opening import store_of
from retailray.storage.stores import Listed

COLLECT_AFTER = 200_000  # new objects


class _Collector:
    """Python's search for cycles, which is rare while somebody lists: a page makes ten thousand objects without cycles,
    and searching them takes as long as reading the page."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, gc.get_threshold()

    @contextlib.contextmanager
    def rare(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._before = gc.get_threshold()
                gc.set_threshold(max(COLLECT_AFTER, self._before[0]), *self._before[1:])
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    gc.set_threshold(*self._before)


COLLECTOR = _Collector()
T = TypeVar("T")


def object_pages(folder: str, *, bounds: Sequence[str] = ()) -> Iterator[list[Listed]]:
    """Address, identity and size [bytes] of every object below a folder of a store, page by page, in any order.

    Memory does not grow with the bucket, but for stores that are neither S3, Google Cloud Storage nor Azure. A store
    tells page after page: ``bounds``, addresses in ascending order, cut the listing into ranges that are asked for at
    once, where it can begin at a key. Raises StorageError.
    """
    store, path = store_of(folder)
    keys = [store_of(bound)[1] for bound in bounds] if store.ranges else []
    with COLLECTOR.rare():
        yield from _in_threads([functools.partial(store.pages, path, *ends) for ends in _ranges(keys)], folder)


def _ranges(bounds: Sequence[str]) -> list[tuple[str, str]]:
    """(after, up to) for all that there is; '' has no end."""
    return list(zip(["", *bounds], [*bounds, ""], strict=True))


def _in_threads(sources: list[Callable[[], Iterator[T]]], folder: str) -> Iterator[T]:
    """What all of them yield, a few items ahead. Raises StorageError, where one of them raises."""
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
                raise_storage_error(error, folder)
            left -= item is None
            if item is not None:
                yield item
    finally:
        stop.set()
