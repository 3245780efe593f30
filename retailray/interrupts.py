"""Ctrl-C where it must not come in between, and imports of what is large."""

import contextlib
import gc
import importlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from retailray.errors import ConfigError


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is answered at the end of the ``with`` block.

    While Ray starts, an exception would be lost in its C++ callbacks.
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
        signal.raise_signal(signal.SIGINT)  # for the handler that was installed before; it may belong to an outer block


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports of torch and its like: Ctrl-C waits, and the garbage collector rests.

    Half imported, torch cannot be imported again in this process, so that a notebook would have to start anew. And of
    the seven seconds that torch and torchvision take, the collector takes one: a million objects are made, all to stay.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with interrupts_wait():
            yield
    finally:
        if collects:
            gc.enable()


def applications(package: str) -> Any:
    """A library of the extra ``applications``. Raises ConfigError where it is not installed."""
    try:
        with importing():
            return importlib.import_module(package)
    except ImportError as error:
        problem = f"this command needs {package.split('.')[0]}: pip install 'retailray[applications]' ({error})"
        raise ConfigError([problem]) from error
