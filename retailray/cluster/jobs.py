"""Ray Jobs of a running cluster: submitted once, followed to their end, stopped, listed.

Everything goes over HTTP to the dashboard (``http://host:8265``), so nothing but that port needs to be reachable.
"""

import email.utils
import functools
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from retailray import events
from retailray.cluster.output import Lines, Stream
from retailray.errors import CapacityError, ConfigError
from retailray.execution.credentials import ray_token
from retailray.interrupts import interrupts_wait

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

T = TypeVar("T")

ANSWER_S = 10.0  # for one look at the dashboard
POLL_S = 0.5
RETRY_S = 1.0
TOLD_S = 15.0  # for what a head's agent tells the dashboard
FIRST_TRIES = 3  # of the first word: an address that is wrong should be an answer, not a wait
TAIL_S = 5.0  # for the stream to end, once a job has ended
LAST_S = 30.0  # for its whole output, if that had not come: its machine may be gone
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
UNREACHABLE = (ConnectionError, requests.exceptions.RequestException)
REQUEST_S = (ANSWER_S, 60.0)  # to connect, and between two bytes of an answer: Ray's client itself waits for ever


class Cluster:
    """The dashboard of a running cluster.

    Raises:
        CapacityError: nobody answers there, or it asks for a token that this machine does not have.
    """

    def __init__(self, address: str, *, unreachable_timeout_s: float) -> None:
        self.address, self.unreachable_timeout_s = address, unreachable_timeout_s
        self.skew_s = 0.0  # its clock less ours, to the second
        self.token = self._token_it_asks_for()
        os.environ["RAY_AUTH_MODE"] = "token" if self.token else "disabled"
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment overrule what it is told
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)  # what it uploads is told by us
        self._client = self.with_retries(lambda: JobSubmissionClient(address))
        request = self._client._do_request
        self._client._do_request = functools.partial(request, timeout=REQUEST_S)

    def _token_it_asks_for(self) -> str | None:
        answer = self._get("/api/version")
        status = answer.status_code
        if date := answer.headers.get("Date"):
            self.skew_s = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
        token = ray_token() if status in (401, 403) else None
        if status in (401, 403) and token is None:
            raise CapacityError(
                f"{self.address} asks for a token, and this machine has none: export RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file with the cluster's token (on the head: ray get-auth-token)"
            )
        if token and self._get("/api/version", token).status_code in (401, 403):
            raise CapacityError(
                f"{self.address} refuses the token of this machine (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
                "~/.ray/auth_token); it differs from the cluster's token"
            )
        return token

    def _get(self, path: str, token: str | None = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        failed: Exception | None = None
        for attempt in range(FIRST_TRIES):
            time.sleep(RETRY_S * attempt)
            try:
                return requests.get(self.address + path, headers=headers, timeout=ANSWER_S)
            except requests.exceptions.RequestException as error:
                failed = error
        raise CapacityError(
            f"no Ray dashboard answers at {self.address} ({type(failed).__name__}); is the cluster up (ray status on "
            "its head), is its port reachable (ray dashboard cluster.yaml forwards it)?"
        ) from failed

    def ask(self, path: str) -> dict[str, Any]:
        """A JSON answer of the dashboard; {} where it has none."""
        response = self._get(path, self.token)
        try:
            return response.json() if response.ok else {}
        except ValueError:
            return {}

    def python(self) -> str:
        """The interpreter that the head's Ray runs its workers with, as its raylet was told; else what the path has.

        The dashboard knows a head that has just started some seconds before it knows how that was told.
        """
        deadline = time.monotonic() + TOLD_S
        while True:
            nodes = self.ask("/nodes?view=summary").get("data", {}).get("summary", [])
            heads = [node for node in nodes if node.get("raylet", {}).get("isHeadNode", True)]
            for argument in [argument for node in heads for argument in node.get("cmdline") or []]:
                if argument.startswith("--python_worker_command="):
                    return argument.partition("=")[2].split()[0]
            if any(node.get("cmdline") for node in heads) or time.monotonic() > deadline:
                return "python"
            time.sleep(POLL_S)

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: dict[str, object], metadata: dict[str, str]
    ) -> bool:
        """Submit a job under this id once, however often it is tried; False where the same job is there already.

        Raises:
            ConfigError: the id is another job's.
            CapacityError: the cluster does not answer, or refuses.
        """
        if self.known(submission_id, metadata):
            return False

        def send() -> None:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError:
                # an answer that was lost: the job is there, and is ours
                if not self.known(submission_id, metadata):
                    raise

        self.with_retries(send)
        return True

    def known(self, submission_id: str, metadata: dict[str, str]) -> bool:
        """True if the job of this id is the one that is meant."""
        job = self.find(submission_id)
        if job is None:
            return False
        theirs = (job.metadata or {}).get("digest")
        if theirs != metadata["digest"]:
            raise ConfigError(
                [
                    f"submit.id = {submission_id!r} belongs to a job with other settings on {self.address}; choose "
                    "another"
                ]
            )
        return True

    def find(self, submission_id: str) -> "JobDetails | None":
        """The job's details; None where there is none."""

        def look() -> "JobDetails | None":
            try:
                # Ctrl-C waits for the answer: Python drops it where a connection is cleared away, in a finalizer
                with interrupts_wait():
                    return self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if _status(error) == 404:
                    return None
                raise

        return self.with_retries(look)

    def jobs(self) -> "list[JobDetails]":
        """Our jobs, the newest first."""
        found = self.with_retries(self._client.list_jobs)
        ours = [job for job in found if "retailray" in (job.metadata or {})]
        return sorted(ours, key=lambda job: job.start_time or 0, reverse=True)

    def stop(self, submission_id: str) -> None:
        self.with_retries(lambda: self._client.stop_job(submission_id))

    def with_retries(self, action: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """Retry while the cluster does not answer. Raises CapacityError after ``timeout_s``.

        That is ``unreachable_timeout_s``, unless it is given.
        """
        from ray.exceptions import RayError  # not before RAY_AUTH_MODE is set: Ray reads it when it is imported

        timeout_s = self.unreachable_timeout_s if timeout_s is None else timeout_s
        deadline, said = time.monotonic() + timeout_s, False
        while True:
            try:
                return action()
            except (*UNREACHABLE, RuntimeError, RayError) as error:
                if not isinstance(error, UNREACHABLE) and not 500 <= (_status(error) or 0) < 600:
                    raise CapacityError(f"{self.address} refuses: {_first_line(error)}") from error
                if time.monotonic() > deadline:
                    raise CapacityError(
                        f"{self.address} gave no answer for {timeout_s:.0f} s "
                        f"({type(error).__name__}); a submitted job may still run: `retailray submit list` and "
                        "`submit attach ID` tell"
                    ) from error
                if not said:
                    events.emit(
                        "waiting",
                        reason=f"{self.address} gives no answer",
                        unreachable_timeout_s=timeout_s,
                    )
                    said = True
                time.sleep(RETRY_S)

    def follow(self, submission_id: str, lines: Lines) -> "JobDetails":
        """Hand every line of the job's output to ``lines``, once and whole, until it has ended; returns its details.

        The stream of lines may break as often as it likes: the status says when the job has ended, and a new stream
        begins where the old one broke.
        """
        stream = Stream(self._client, submission_id, lines)
        stream.start()
        try:
            while True:
                job = self.find(submission_id)
                if job is None:
                    raise CapacityError(
                        f"{self.address} does not know job {submission_id} any more; was the cluster restarted?"
                    )
                if job.status.is_terminal():
                    break
                time.sleep(POLL_S)
            stream.join(TAIL_S)
        finally:
            stream.stop()
        try:
            output = self.with_retries(
                lambda: self._client.get_job_logs(submission_id), timeout_s=min(LAST_S, self.unreachable_timeout_s)
            )
            lines.take(output)
        except Exception as error:  # the job has ended, and its exit code is known, whatever its machine says
            events.emit("warning", note=f"the job's last lines may be missing: {_first_line(error)}")
        lines.close()
        return job


def _status(error: BaseException) -> int | None:
    """The HTTP status in what Ray's client raises."""
    found = re.match(r"Request failed with status code (\d{3})", str(error))
    return int(found[1]) if found else None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
