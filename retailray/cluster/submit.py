"""``submit``: any command as a job of a running cluster, and the jobs that were submitted.

    retailray submit COMMAND [its own arguments] [--cluster.address http://host:8265] [--detach] [--submit.id ID]
    retailray submit attach|stop ID, retailray submit list
    retailray submit COMMAND ... --render kuberay

Everything about the command is checked here, before anything is uploaded; the process ends with the job's exit code.
"""

import contextlib
import datetime
import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retailray import events
from retailray.cluster.health import CLIENT, versions
from retailray.cluster.jobs import Cluster
from retailray.cluster.kuberay import render
from retailray.cluster.output import Lines
from retailray.cluster.package import make_package, size_of
from retailray.cluster.request import OF_JOBS, Request, parse
from retailray.config import SubmitConfig, arguments
from retailray.errors import ConfigError, JobEnded, RetailrayError
from retailray.execution.credentials import SEALED, encrypt_credentials, new_key, storage_environment
from retailray.provenance import version

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

OWN_CODES = (1, 2, 3, 4, 130)
# Ctrl-C in place of SIGTERM, and time to write down where to continue
STOP_ENV = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30", "PYTHONUNBUFFERED": "1"}


def submit(argv: Sequence[str]) -> None:
    """The whole command.

    Raises:
        JobEnded: with the job's own exit code, where that is not 0.
        RetailrayError: it was not submitted, or is lost from sight.
    """
    what, *rest = argv or ["--help"]
    if {"-h", "--help"} & {what, *rest}:
        _print_help()
    elif what in OF_JOBS:
        _of_jobs(what, rest)
    else:
        asked = parse(what, rest)
        if asked.submit.render:
            manifests = render(asked.command, asked.entrypoint, asked.submit.kuberay, asked.settings)
            print(manifests, end="", file=events.stream())
        else:
            send(asked, connect(asked.submit))


def connect(config: SubmitConfig) -> Cluster:
    """Raises ConfigError: no address, or one that is no dashboard's. CapacityError: nobody answers."""
    return Cluster(_address(config), unreachable_timeout_s=config.submit.unreachable_timeout_s)


def send(asked: Request, cluster: Cluster) -> None:
    """Submit and, unless told otherwise, follow. Raises JobEnded, where the job did not end well."""
    watch = events.Stopwatch()
    options, key = asked.submit.submit, new_key()
    _tell_local_paths(asked)
    now = datetime.datetime.now(datetime.UTC)
    submission_id = options.id or f"{asked.command}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    # a virtual environment of the job's own comes first on its path
    python = options.python or ("python" if options.requirements else cluster.python())
    given = (
        STOP_ENV
        | {CLIENT: json.dumps(versions())}
        | _encrypted_credentials(cluster, key, allow_insecure=options.allow_insecure)
    )
    metadata = {"retailray": version("retailray"), "command": asked.command, "digest": asked.digest}
    folder = make_package(asked.settings, key)
    try:
        runtime_env: dict[str, object] = {"working_dir": str(folder), "env_vars": given}
        if options.requirements:
            runtime_env["pip"] = options.requirements
        events.emit("upload", kb=round(size_of(folder) / 1000), what="retailray and its settings", to=cluster.address)
        new = cluster.submit(submission_id, shlex.join([python, *asked.entrypoint]), runtime_env, metadata)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    events.emit(
        "submitted" if new else "known",
        id=submission_id,
        address=cluster.address,
        seconds=watch.seconds,
        note="" if new else "a job of this id and these settings is there already; it is followed",
    )
    if asked.submit.detach:
        events.emit("detached", id=submission_id, follow=_advice("attach", submission_id, cluster))
    else:
        _follow(cluster, submission_id)


def _encrypted_credentials(cluster: Cluster, key: bytes, *, allow_insecure: bool) -> dict[str, str]:
    values = storage_environment()
    if not values:
        return {}
    if not cluster.token:
        sent = "go along with this job" if allow_insecure else "do not go along (--submit.allow_insecure sends them)"
        events.emit(
            "warning",
            note="the cluster has no token authentication: everybody who reaches its dashboard can run code on it "
            f"and read its jobs' credentials. Storage credentials {sent}; see docs/cluster.md",
        )
        if not allow_insecure:
            return {}
    return {SEALED: encrypt_credentials(values, key, token=cluster.token)}


def _address(config: SubmitConfig) -> str:
    """Raises ConfigError: none, or one that is no dashboard's."""
    address = config.cluster.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(["cluster.address: required and not given; the cluster's dashboard, e.g. http://host:8265"])
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            [f"cluster.address = {address!r}: jobs are submitted to the cluster's dashboard, e.g. http://host:8265"]
        )
    return address.rstrip("/")


def _tell_local_paths(asked: Request) -> None:
    """Paths of this machine mean nothing to another."""
    local = [key for key, value in arguments.leaves(asked.settings) if _is_path(value)]
    if local:
        events.emit(
            "warning",
            note=f"{', '.join(local)}: local paths; every machine of the cluster must have the same files there",
        )


def _is_path(value: object) -> bool:
    return (isinstance(value, str) and value.startswith("/")) or (isinstance(value, list) and any(map(_is_path, value)))


def _of_jobs(what: str, argv: Sequence[str]) -> None:
    named = [argument for argument in argv[:1] if not argument.startswith("--")]
    if (what == "list") == bool(named) or "" in named:
        raise ConfigError([f"usage: retailray submit {what}{'' if what == 'list' else ' ID'} [--cluster.address URL]"])
    config = arguments.parse("submit", argv[len(named) :])
    assert isinstance(config, SubmitConfig)
    cluster = connect(config)
    if what == "list":
        for job in cluster.jobs():
            _say_job(job)
        return
    [submission_id] = named
    if cluster.find(submission_id) is None:
        raise RetailrayError(f"{cluster.address} knows no job {submission_id}; `retailray submit list` lists them")
    if what == "stop":
        cluster.stop(submission_id)
        _say_job(cluster.follow(submission_id, Lines(lambda line: None)))
    else:
        _follow(cluster, submission_id)


def _say_job(job: "JobDetails") -> None:
    started = datetime.datetime.fromtimestamp((job.start_time or 0) / 1000, datetime.UTC)
    events.emit(
        "job",
        id=job.submission_id,
        command=(job.metadata or {}).get("command") or (job.metadata or {}).get("verb"),  # 0.2.0: verb
        status=job.status.value,
        exit_code=_exit_code(job),
        started_at=started.isoformat(timespec="seconds"),
    )


def _exit_code(job: "JobDetails") -> int | None:
    """The job's own; 130 for one that was stopped, 1 for one that a signal or the cluster ended."""
    if not job.status.is_terminal():
        return None
    if job.status.value == "SUCCEEDED":
        return 0
    if job.status.value == "STOPPED":
        return 130
    return job.driver_exit_code if job.driver_exit_code in OWN_CODES else 1


def _follow(cluster: Cluster, submission_id: str) -> None:
    """Show the job's output to its end. Raises JobEnded where it did not end well."""
    lines = Lines(_show)
    while True:
        try:
            job = cluster.follow(submission_id, lines)
            break
        except KeyboardInterrupt:
            if not _goes_on_following(cluster, submission_id):
                raise JobEnded(f"detached; {_advice('attach', submission_id, cluster)} follows it again", 130) from None
    code = _exit_code(job)
    if code:
        ended = "was stopped" if job.status.value == "STOPPED" else f"ended with exit code {code}"
        message = " ".join((job.message or "").split())[:300]
        # where the command itself failed, Ray's message repeats its output, which was shown
        why = "" if ended == "was stopped" or message.startswith("Job entrypoint command failed") else f": {message}"
        raise JobEnded(f"job {submission_id} {ended}{why}", code)


def _goes_on_following(cluster: Cluster, submission_id: str) -> bool:
    """What is to be done after Ctrl-C; without a terminal to ask on, the job is left running."""
    if not sys.stdin.isatty():
        return False
    print(
        f"\nJob {submission_id} is still running. [s]top it, [d]etach and leave it running, [f]ollow on? ",
        end="",
        file=sys.stderr,
    )
    try:
        answer = sys.stdin.readline().strip().lower()[:1]
    except KeyboardInterrupt:
        return False
    if answer == "s":
        cluster.stop(submission_id)  # its last lines, and its end, are followed
    return answer != "d"


def _show(line: str) -> None:
    """A line of the job: events as our own, whatever else it prints on standard error."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        print(line, file=sys.stderr, flush=True)
    else:
        events.pass_on(line, event)


def _advice(what: str, submission_id: str, cluster: Cluster) -> str:
    return f"`retailray submit {what} {submission_id} --cluster.address {cluster.address}`"


def _print_help() -> None:
    with contextlib.redirect_stdout(events.stream()), contextlib.suppress(SystemExit):
        print(__doc__)
        arguments.parse("submit", ["--help"])
