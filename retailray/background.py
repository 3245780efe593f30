"""A thread beside a ``with`` block that ends with it, at whatever moment Ctrl-C comes."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator

Ended = Callable[[float], bool]


@contextlib.contextmanager
def beside(work: Callable[[Ended], None], *, join_s: float = 5.0) -> Iterator[None]:
    """Run ``work(ended)`` in a thread for the length of the block.

    ``ended(seconds)`` waits up to so long for the end of the block, and says whether it has come.
    """
    # not threading.Event: Ctrl-C within its set() can leave its lock taken for ever
    end: queue.SimpleQueue[None] = queue.SimpleQueue()
    # gone with this frame, even where Ctrl-C comes before the first line of the clean-up: once nobody holds what was
    # raised, as a command line does not
    block = _Block()
    thread = threading.Thread(target=work, args=(_wait(end, weakref.ref(block)),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.put(None)
        thread.join(timeout=join_s)


class _Block:
    """A value that a weak reference can follow."""


def _wait(end: "queue.SimpleQueue[None]", block: "weakref.ref[_Block]") -> Ended:
    def ended(seconds: float) -> bool:
        try:
            end.get(timeout=seconds)
        except queue.Empty:
            return block() is None
        return True

    return ended
