"""Ctrl-C where it must not come in between."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is answered at the end of the ``with`` block.

    While Ray starts an exception would be lost in its C++ callbacks; and torch, half imported, cannot be imported again
    in this process, so that a notebook would have to start anew.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if caught:
        raise KeyboardInterrupt
