"""What is submitted: a verb or a night, with all its settings checked and resolved before anything is sent."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retailray import storage
from retailray.cluster.package import CONFIG, HERE
from retailray.config import VERBS, SubmitConfig, VerbConfig, arguments
from retailray.errors import ConfigError
from retailray.provenance import git_commit, version

NIGHT = "nightly"  # jobs/nightly.py, which is no verb
OF_JOBS = ("attach", "stop", "list")


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
        keys, values = set(arguments.known_keys(VERBS[verb])), dict(leaves(settings_of(config)))
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


def leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of settings in sections; what is a mapping below those is a value."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += leaves(value, f"{name}.") if isinstance(value, dict) and not prefix else [(prefix + name, value)]
    return found
