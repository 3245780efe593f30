"""``submit``: any verb as a job of a running cluster, and the jobs that were submitted.

    retailray submit VERB [the verb's own arguments] [--cluster.address http://host:8265] [--detach] [--submit.id ID]
    retailray submit attach|stop ID, retailray submit list
    retailray submit VERB ... --render kuberay

Everything about the verb is checked here, before anything is uploaded; the process ends with the job's exit code.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from retailray import arguments, progress, storage
from retailray.cluster.environment import SEALED, new_key, seal, storage_environment
from retailray.cluster.health import CLIENT, versions
from retailray.cluster.jobs import Cluster
from retailray.cluster.kuberay import render
from retailray.cluster.package import CONFIG, NIGHTLY, make_package, size_of
from retailray.config import VERBS, SubmitConfig, VerbConfig
from retailray.errors import ConfigError, JobEnded, RetailrayError
from retailray.provenance import version

NIGHT = "nightly"  # jobs/nightly.py, which is no verb
OF_JOBS = ("attach", "stop", "list")
OWN_CODES = (1, 2, 3, 4, 130)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Ctrl-C in place of SIGTERM, and time to write down where to go on
STOP_ENV = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30", "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: ``config`` is the verb's; of a night, ``files`` are its config files as they are."""

    verb: str
    submit: SubmitConfig
    config: VerbConfig | None
    files: list[bytes]

    @property
    def command(self) -> list[str]:
        """What runs on the cluster, after the interpreter."""
        if self.config is not None:
            return ["-m", "retailray", self.verb, "--config", CONFIG]
        named = [part for number in range(len(self.files)) for part in ("--config", f"job-{number}.yaml")]
        return ["jobs/nightly.py", *named]

    @property
    def digest(self) -> str:
        """Of all that the job does, so that one id is never two jobs."""
        settings = self.config.model_dump(mode="json", exclude={"cluster": {"address"}}) if self.config else None
        parts = [self.verb, settings, [hashlib.sha256(content).hexdigest() for content in self.files]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def submit(argv: Sequence[str]) -> None:
    """The whole verb.

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
            manifests = render(asked.verb, asked.command, asked.submit.kuberay, asked.config, asked.files)
            print(manifests, end="", file=progress.stream())
        else:
            send(asked)


def parse(verb: str, argv: Sequence[str]) -> Request:
    """Raises ConfigError, with all that is wrong with the submission and with the verb's own settings."""
    if verb not in (*VERBS, NIGHT) or verb == "submit":
        known = ", ".join([*(name for name in VERBS if name != "submit"), NIGHT, *OF_JOBS])
        raise ConfigError([f"{verb!r} cannot be submitted; one of: {known}"])
    ours, theirs = arguments.divide(argv, set(arguments.known_keys(SubmitConfig)))
    files = [value for key, value in theirs if key == "config"]
    problems: list[str] = []
    config = submission = None
    try:
        submission = arguments.parse("submit", arguments.join([*(("config", file) for file in files), *ours]))
    except ConfigError as error:
        problems += error.problems
    contents: list[bytes] = []
    try:
        if verb == NIGHT:
            contents = _night_files(files, theirs)
        else:
            config = arguments.parse(verb, arguments.join(theirs))
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems or submission is None:
        raise ConfigError(problems)
    assert isinstance(submission, SubmitConfig)
    return Request(verb, submission, config, contents)


def _night_files(files: list[str], theirs: list[tuple[str, str]]) -> list[bytes]:
    if not NIGHTLY.is_file():
        raise ConfigError([f"{NIGHT} is a job of retailray's checkout, and this installation has none: {NIGHTLY}"])
    if not files or len(files) != len(theirs):
        raise ConfigError([f"submit {NIGHT} takes --config FILE (one or several) and settings of submit, nothing else"])
    return [storage.read_bytes(storage.normalize(file)) for file in files]


def send(asked: Request) -> None:
    """Submit and, unless told otherwise, follow. Raises JobEnded, where the job did not end well."""
    watch = progress.Stopwatch()
    options = asked.submit.submit
    cluster = Cluster(dashboard_of(asked.submit), patience_s=options.patience_s)
    _tell_local_paths(asked, cluster)
    key = new_key()
    folder = make_package(asked.config, asked.files, key)
    try:
        submission_id = (
            options.id or f"{asked.verb}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        )
        # a virtual environment of the job's own comes first on its path
        python = options.python or ("python" if options.requirements else cluster.python())
        entrypoint = shlex.join([python, *asked.command])
        given = STOP_ENV | {CLIENT: json.dumps(versions())} | _sealed(cluster, key)
        runtime_env: dict[str, Any] = {"working_dir": str(folder), "env_vars": given}
        if options.requirements:
            runtime_env["pip"] = options.requirements
        metadata = {"retailray": version("retailray"), "verb": asked.verb, "digest": asked.digest}
        progress.emit("upload", kb=round(size_of(folder) / 1000), what="retailray and its settings", to=cluster.address)
        new = cluster.submit(submission_id, entrypoint, runtime_env, metadata)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.emit(
        "submitted" if new else "known", id=submission_id, address=cluster.address, seconds=watch.seconds,
        note="" if new else "a job of this id and these settings is there already; it is followed",
    )  # fmt: skip
    if asked.submit.detach:
        progress.emit("detached", id=submission_id, follow=_advice("attach", submission_id, cluster))
    else:
        _follow(cluster, submission_id)


def _sealed(cluster: Cluster, key: bytes) -> dict[str, str]:
    values = storage_environment()
    if not values:
        return {}
    if not cluster.token:
        progress.emit(
            "warning",
            note="the cluster has no token authentication: who reaches its dashboard may run code on it and read the "
            "storage credentials of this job; see docs/cluster.md",
        )
    return {SEALED: seal(values, key, token=cluster.token)}


def dashboard_of(config: SubmitConfig) -> str:
    """Raises ConfigError: none, or one that is no dashboard's."""
    address = config.cluster.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(["cluster.address: required and not given; the cluster's dashboard, e.g. http://host:8265"])
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            [f"cluster.address = {address!r}: jobs are submitted to the cluster's dashboard, e.g. http://host:8265"]
        )
    return address.rstrip("/")


def _tell_local_paths(asked: Request, cluster: Cluster) -> None:
    """Paths of this machine mean nothing to another."""
    if asked.config is None or urlsplit(cluster.address).hostname in LOOPBACK:
        return
    settings = asked.config.model_dump(mode="json", exclude_unset=True)
    local = [key for key, value in _leaves(settings) if isinstance(value, str) and value.startswith("/")]
    if local:
        progress.emit(
            "warning",
            note=f"{', '.join(local)}: paths, not addresses; every machine of the cluster must have the same there",
        )


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


def _of_jobs(what: str, argv: Sequence[str]) -> None:
    named = [argument for argument in argv[:1] if not argument.startswith("--")]
    if (what == "list") == bool(named):
        raise ConfigError([f"usage: retailray submit {what}{'' if what == 'list' else ' ID'} [--cluster.address URL]"])
    config = arguments.parse("submit", argv[len(named) :])
    assert isinstance(config, SubmitConfig)
    cluster = Cluster(dashboard_of(config), patience_s=config.submit.patience_s)
    if what == "list":
        for job in cluster.jobs():
            _say_job(job)
        return
    [submission_id] = named
    if cluster.find(submission_id) is None:
        raise RetailrayError(f"{cluster.address} knows no job {submission_id}; `retailray submit list` lists them")
    if what == "stop":
        cluster.stop(submission_id)
        _say_job(cluster.follow(submission_id, lambda line: None))
    else:
        _follow(cluster, submission_id)


def _say_job(job: Any) -> None:
    started = datetime.datetime.fromtimestamp((job.start_time or 0) / 1000, datetime.UTC)
    progress.emit(
        "job", id=job.submission_id, verb=(job.metadata or {}).get("verb"), status=job.status.value,
        exit_code=_exit_code(job), started_at=started.isoformat(timespec="seconds"),
    )  # fmt: skip


def _exit_code(job: Any) -> int | None:
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
    while True:
        try:
            job = cluster.follow(submission_id, _show)
            break
        except KeyboardInterrupt:
            if not _goes_on_following(cluster, submission_id):
                raise JobEnded(f"left; {_advice('attach', submission_id, cluster)} follows it again", 130) from None
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
        f"\nJob {submission_id} goes on. [s]top it, [d]etach and leave it running, [f]ollow on? ",
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
        progress.pass_on(line, event)


def _advice(what: str, submission_id: str, cluster: Cluster) -> str:
    return f"`retailray submit {what} {submission_id} --cluster.address {cluster.address}`"


def _print_help() -> None:
    with contextlib.redirect_stdout(progress.stream()), contextlib.suppress(SystemExit):
        print(__doc__)
        arguments.parse("submit", ["--help"])
