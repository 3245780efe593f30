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
from pathlib import Path
from typing import Any

from retailray import arguments, progress, storage
from retailray.cluster.environment import SEALED, new_key, seal, storage_environment
from retailray.cluster.health import CLIENT, versions
from retailray.cluster.jobs import Cluster, Lines
from retailray.cluster.kuberay import render
from retailray.cluster.package import CONFIG, HERE, make_package, size_of
from retailray.config import VERBS, SubmitConfig, VerbConfig
from retailray.errors import ConfigError, JobEnded, RetailrayError
from retailray.provenance import git_commit, version

NIGHT = "nightly"  # jobs/nightly.py, which is no verb
OF_JOBS = ("attach", "stop", "list")
OWN_CODES = (1, 2, 3, 4, 130)
# Ctrl-C in place of SIGTERM, and time to write down where to go on
STOP_ENV = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30", "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; ``settings``: what the job reads, resolved, in sections."""

    verb: str
    submit: SubmitConfig
    settings: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """What runs on the cluster, after the interpreter."""
        script = ["jobs/nightly.py"] if self.verb == NIGHT else ["-m", "retailray", self.verb]
        return [*script, "--config", CONFIG]

    @property
    def digest(self) -> str:
        """Of all that the job does, so that one id is never two jobs."""
        options = self.submit.submit
        code = [version("retailray"), git_commit(), options.python]
        if options.requirements:
            code.append(Path(options.requirements).read_text())
        return hashlib.sha256(json.dumps([self.verb, self.settings, code], sort_keys=True).encode()).hexdigest()[:16]


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
            manifests = render(asked.verb, asked.command, asked.submit.kuberay, asked.settings)
            print(manifests, end="", file=progress.stream())
        else:
            send(asked, connect(asked.submit))


def parse(verb: str, argv: Sequence[str]) -> Request:
    """Raises ConfigError, with all that is wrong with the submission and with the verb's own settings."""
    if verb not in (*VERBS, NIGHT) or verb == "submit":
        known = ", ".join([*(name for name in VERBS if name != "submit"), NIGHT, *OF_JOBS])
        raise ConfigError([f"{verb!r} cannot be submitted; one of: {known}"])
    ours, theirs = arguments.divide(argv, set(arguments.known_keys(SubmitConfig)))
    files = [pair for pair in theirs if pair[0] == "config"]
    problems: list[str] = []
    submission: Any = None
    settings: dict[str, Any] = {}
    try:
        submission = arguments.parse("submit", arguments.join([*files, *ours]))
        problems += _unusable_requirements(submission)
    except ConfigError as error:
        problems += error.problems
    try:
        settings = (
            _night_settings(theirs) if verb == NIGHT else settings_of(arguments.parse(verb, arguments.join(theirs)))
        )
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    return Request(verb, submission, settings)


def settings_of(config: VerbConfig) -> dict[str, Any]:
    """Resolved; the job finds its cluster where Ray says, not where we found it."""
    return config.model_dump(mode="json", exclude={"cluster": {"address"}})


def _night_settings(theirs: list[arguments.Pair]) -> dict[str, Any]:
    """What the files of a night say to its steps, checked and resolved as each step would."""
    if jobs_folder() is None:
        raise ConfigError([f"{NIGHT} is jobs/nightly.py of retailray's checkout, and there is none here"])
    files = [value for key, value in theirs if key == "config" and value]
    if not files or len(files) != len(theirs):
        raise ConfigError([f"submit {NIGHT} takes --config FILE (one or several) and settings of submit, nothing else"])
    named = arguments.join(theirs)
    resolved = {"score": arguments.parse("score", named)}
    given = arguments.given(files)
    if any(key.startswith("check.") for key in given):
        resolved["check"] = arguments.parse("check", named)
    flat: dict[str, Any] = {}
    for verb, config in resolved.items():
        keys, values = set(arguments.known_keys(VERBS[verb])), dict(_leaves(settings_of(config)))
        flat |= {key: values[key] for key in given if key in keys and key in values}
    return arguments.nest(flat)


def jobs_folder() -> Path | None:
    """The folder of nightly.py: of the checkout that this package is in, or of the working directory."""
    found = (folder / "jobs" for folder in (HERE.parent, Path.cwd()))
    return next((folder for folder in found if (folder / "nightly.py").is_file()), None)


def _unusable_requirements(submission: Any) -> list[str]:
    path = submission.submit.requirements
    if path is None:
        return []
    if not Path(path).is_file():
        return [f"submit.requirements = {path!r}: there is no such file"]
    if storage.PASSWORD.search(Path(path).read_text()):
        return [f"submit.requirements = {path!r}: an address with a password in it would stand in Ray's logs"]
    return []


def connect(config: SubmitConfig) -> Cluster:
    """Raises ConfigError: no address, or one that is no dashboard's. CapacityError: nobody answers."""
    return Cluster(_address(config), patience_s=config.submit.patience_s)


def send(asked: Request, cluster: Cluster) -> None:
    """Submit and, unless told otherwise, follow. Raises JobEnded, where the job did not end well."""
    watch = progress.Stopwatch()
    options, key = asked.submit.submit, new_key()
    _tell_local_paths(asked)
    now = datetime.datetime.now(datetime.UTC)
    submission_id = options.id or f"{asked.verb}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    # a virtual environment of the job's own comes first on its path
    python = options.python or ("python" if options.requirements else cluster.python())
    given = STOP_ENV | {CLIENT: json.dumps(versions())} | _sealed(cluster, key)
    metadata = {"retailray": version("retailray"), "verb": asked.verb, "digest": asked.digest}
    folder = make_package(asked.settings, key, jobs=jobs_folder() if asked.verb == NIGHT else None)
    try:
        runtime_env: dict[str, Any] = {"working_dir": str(folder), "env_vars": given}
        if options.requirements:
            runtime_env["pip"] = options.requirements
        progress.emit("upload", kb=round(size_of(folder) / 1000), what="retailray and its settings", to=cluster.address)
        new = cluster.submit(submission_id, shlex.join([python, *asked.command]), runtime_env, metadata)
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
    local = [key for key, value in _leaves(asked.settings) if _is_path(value)]
    if local:
        progress.emit(
            "warning",
            note=f"{', '.join(local)}: paths, not addresses; every machine of the cluster must have the same there",
        )


def _is_path(value: Any) -> bool:
    return (isinstance(value, str) and value.startswith("/")) or (isinstance(value, list) and any(map(_is_path, value)))


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of settings in sections; what is a mapping below those is a value."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _leaves(value, f"{name}.") if isinstance(value, dict) and not prefix else [(prefix + name, value)]
    return found


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
    lines = Lines(_show)
    while True:
        try:
            job = cluster.follow(submission_id, lines)
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
