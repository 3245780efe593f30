"""The output of a job, line by line, over a connection that may break."""

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

AGAIN_S = 1.0  # between two streams

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


class Lines:
    """Whole lines out of a text that comes in pieces, and from its beginning again after every break."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._taken, self._partial = show, 0, ""
        self._lock = threading.Lock()

    def take(self, text: str, *, offset: int = 0) -> None:
        """``text`` stands at ``offset`` [characters] of the whole; what of it is known is left out."""
        with self._lock:
            fresh = text[max(0, self._taken - offset) :]
            self._taken = max(self._taken, offset + len(text))
            *whole, self._partial = (self._partial + fresh).split("\n")
            for line in whole:
                self._show(line)

    def close(self) -> None:
        with self._lock:
            if self._partial:
                self._show(self._partial)
                self._partial = ""


class Stream(threading.Thread):
    """Follows the dashboard's stream of a job's output; begins again where it breaks."""

    def __init__(self, client: "JobSubmissionClient", submission_id: str, lines: Lines) -> None:
        super().__init__(daemon=True)
        self._client, self._id, self._lines = client, submission_id, lines
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                asyncio.run(self._follow())
                return  # the dashboard ends the stream when the job has ended
            except Exception:  # whatever broke it, the status is asked for elsewhere
                self._stopped.wait(AGAIN_S)

    async def _follow(self) -> None:
        offset = 0
        async for piece in self._client.tail_job_logs(self._id):
            if self._stopped.is_set():
                return
            self._lines.take(piece, offset=offset)
            offset += len(piece)
