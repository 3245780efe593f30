"""What is submitted: a command, with all its settings checked and resolved before anything is sent."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from retailray import storage
from retailray.cluster.package import CONFIG
from retailray.config import COMMANDS, CommandConfig, SubmitConfig, arguments
from retailray.errors import ConfigError
from retailray.provenance import git_commit, version

OF_JOBS = ("attach", "stop", "list")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; ``settings``: what the job reads, resolved, in sections."""

    command: str
    submit: SubmitConfig
    settings: dict[str, object]

    @property
    def entrypoint(self) -> list[str]:
        """What runs on the cluster, after the interpreter."""
        return ["-m", "retailray", self.command, "--config", CONFIG]

    @property
    def digest(self) -> str:
        """Of all that the job does, so that one id is never two jobs."""
        options = self.submit.submit
        code = [version("retailray"), git_commit(), options.python]
        if options.requirements:
            code.append(Path(options.requirements).read_text())
        return hashlib.sha256(json.dumps([self.command, self.settings, code], sort_keys=True).encode()).hexdigest()[:16]


def parse(command: str, argv: Sequence[str]) -> Request:
    """Raises ConfigError, with all that is wrong with the submission and with the command's own settings."""
    if command not in COMMANDS or command == "submit":
        known = ", ".join([*(name for name in COMMANDS if name != "submit"), *OF_JOBS])
        raise ConfigError([f"{command!r} cannot be submitted; one of: {known}"])
    ours, theirs = arguments.divide(argv, set(arguments.known_keys(SubmitConfig)))
    files = [pair for pair in theirs if pair[0] == "config"]
    problems: list[str] = []
    submission: SubmitConfig | None = None
    settings: dict[str, object] = {}
    try:
        submission = cast(SubmitConfig, arguments.parse("submit", arguments.join([*files, *ours])))
        problems += _unusable_requirements(submission)
    except ConfigError as error:
        problems += error.problems
    try:
        settings = settings_of(arguments.parse(command, arguments.join(theirs)))
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems or submission is None:
        raise ConfigError(problems)
    return Request(command, submission, settings)


def settings_of(config: CommandConfig) -> dict[str, object]:
    """Resolved; the job finds its cluster where Ray says, not where we found it."""
    return config.model_dump(mode="json", exclude={"cluster": {"address"}})


def _unusable_requirements(submission: SubmitConfig) -> list[str]:
    path = submission.submit.requirements
    if path is None:
        return []
    if not Path(path).is_file():
        return [f"submit.requirements = {path!r}: there is no such file"]
    if storage.PASSWORD.search(Path(path).read_text()):
        return [f"submit.requirements = {path!r}: an address with a password in it would stand in Ray's logs"]
    return []
