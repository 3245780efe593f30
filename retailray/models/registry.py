"""Versions by name: ``<registry>/<name>@champion`` is the version that the last move of that alias names.

A move is a file ``<registry>/<name>/.aliases/<alias>/<number>.json`` that is made once and never changed; the highest
number holds. So an alias moves in one step (an exclusive create that one of two movers wins), and the moves are its
history: who, when, from what to what, on which evidence.
"""

import datetime
import getpass
import json
import re
import socket
from typing import TYPE_CHECKING, TypeVar

import pydantic

from retailray import storage
from retailray.errors import ModelError

if TYPE_CHECKING:  # every predictor reads this module, and no config
    from retailray.config import EvaluateConfig, ExportConfig, ScoreConfig

C = TypeVar("C", "EvaluateConfig", "ExportConfig", "ScoreConfig")
FOLDER = ".aliases"
_ALIAS = re.compile(r"(?P<folder>.*/[^/@]+)@(?P<alias>[a-z][a-z0-9_-]*)")


class Move(pydantic.BaseModel):
    """One move of an alias. ``evidence``: what spoke for it, as its author gave it."""

    model_config = {"frozen": True}
    number: int
    version: str
    previous: str | None
    moved_at: str
    by: str
    reason: str
    evidence: dict[str, object] = {}


def parse_alias(address: str) -> tuple[str, str] | None:
    """The folder of a registered name and the alias, if an address is ``<registry>/<name>@<alias>``."""
    found = _ALIAS.fullmatch(address)
    return (found["folder"], found["alias"]) if found else None


def resolve(address: str) -> str:
    """The address of the bundle that an address means now: itself, or what an alias names.

    Raises:
        ModelError: the alias was never set. StorageError: the registry cannot be reached.
    """
    parsed = parse_alias(address)
    if parsed is None:
        return address
    folder, alias = parsed
    moves = history(folder, alias)
    if not moves:
        raise ModelError(
            f"{address}: @{alias} was never set; `retailray promote --model.uri {folder}/<version>` sets it, and a "
            "version can be named in its place"
        )
    return storage.join(folder, moves[-1].version)


def resolve_alias(config: C) -> C:
    """The same config with ``model.uri`` as it is meant now: an alias may move while a command runs."""
    model = config.model.model_copy(update={"uri": resolve(config.model.uri)})
    return config.model_copy(update={"model": model})


def history(folder: str, alias: str) -> list[Move]:
    """All moves of an alias of the name that is registered at ``folder``, the oldest first."""
    names = [name for name in storage.list_files(storage.join(folder, FOLDER, alias)) if name.endswith(".json")]
    return [Move.model_validate_json(storage.read_bytes(name)) for name in sorted(names)]


def move(folder: str, alias: str, version: str, *, reason: str, evidence: dict[str, object], seen: int) -> Move:
    """Let an alias name ``version``; ``seen``: the number of the last move that this decision is based on (0: none).

    Raises:
        ModelError: somebody moved it since, or at the same moment.
    """
    before = history(folder, alias)
    last = before[-1] if before else None
    made = Move(
        number=seen + 1,
        version=version,
        previous=last.version if last else None,
        moved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        by=f"{_user()}@{socket.gethostname()}",
        reason=reason,
        evidence=evidence,
    )
    address = storage.join(folder, FOLDER, alias, f"{made.number:08d}.json")
    data = json.dumps(made.model_dump(), indent=2, default=str).encode()
    if (last.number if last else 0) != seen or not storage.put_if_absent(address, data):
        now = history(folder, alias)[-1]
        raise ModelError(
            f"{folder}@{alias}: {now.by} moved it to {now.version} at {now.moved_at}, meanwhile; look at that first"
        )
    return made


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
