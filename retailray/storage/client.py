"""How long a store is waited for, and how often it is asked again: one policy for reads and writes."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from retailray.errors import StorageError
from retailray.storage.addresses import is_local
from retailray.storage.failures import asks_for_time, is_transient, raise_storage_error, storage_error
from retailray.storage.opening import store_of

T = TypeVar("T")

PATIENCE_S = 1800.0  # for whole objects, which may be large; the client's own time-outs end what is stuck
DEADLINE_S = 15.0  # for one look at a store before work starts; a user waits 20 s at most for a clear line
ROUNDS, BACK_OFF_S = 4, 0.5  # tries, each with the client's own retries, and the first wait [s]
# for a store that answers, and asks for time: object stores divide a busy prefix within minutes
SLOWED_DOWN_S, LONGEST_WAIT_S = 300.0, 20.0


def with_deadline(
    address: str, action: Callable[[], T], *, deadline_s: float | None = PATIENCE_S, busy_s: float = SLOWED_DOWN_S
) -> T:
    """Run ``action``; every failure becomes a one-line :class:`StorageError` that names ``address``.

    ``deadline_s``: of one try; None where its client ends what is stuck. ``busy_s``: for how long it is tried again
    where the store says that it is busy.
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


def _once(address: str, action: Callable[[], T], deadline_s: float | None) -> T:
    # a disk answers, and a thread takes as long as a read
    if deadline_s is None or (deadline_s >= PATIENCE_S and is_local(address)):
        try:
            return action()
        except Exception as error:
            raise_storage_error(error, address)
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
        raise storage_error(TimeoutError(f"no answer within {deadline_s:.0f} s"), address)
    if "error" in done:
        raise_storage_error(done["error"], address)
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
        store, path = store_of(address)
        if not store.fs.exists(path) and not store.fs.glob(path):
            raise FileNotFoundError(address)

    with_deadline(address, look, deadline_s=DEADLINE_S, busy_s=0)  # somebody waits for a clear line
