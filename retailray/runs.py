"""A run directory: made new for every run, filled, then marked complete, then pointed to. Nothing is overwritten."""

import concurrent.futures
import datetime
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from retailray import events, storage
from retailray.config import CommandConfig
from retailray.errors import ConfigError, RetailrayError, StorageError
from retailray.provenance import made_by

DECISIONS = "decisions.json"
LISTINGS = 16  # folders listed at once


class RunDirectory:
    """``<out>/run_id=<UTC timestamp>-<short id>/``; making one writes the resolved config into it.

    That first write is also the test that ``out`` can be written at all, before any work is done.
    """

    def __init__(self, config: CommandConfig, *, run_id: str | None = None) -> None:
        """``run_id``: of an unfinished run that is gone on with."""
        started = datetime.datetime.now(datetime.UTC)
        self.resumed = run_id is not None
        # The short id begins with the microseconds, so that runs of one second sort by their age like all others.
        short_id = f"{started.microsecond:05x}{secrets.randbelow(16):x}"
        self.run_id = run_id or f"{started:%Y%m%dT%H%M%SZ}-{short_id}"
        self.started_at = started.isoformat(timespec="seconds")
        self.out = config.out
        self.machines: list[dict[str, object]] = []  # that the work ran on, by kind; for run.json
        self.address = address_of(config.out, self.run_id)
        events.bind(self.run_id, self.address)
        resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        storage.write_bytes(self.path("config.yaml"), resolved.encode(), deadline_s=storage.DEADLINE_S)
        self._pointer = storage.join(config.out, "LATEST")
        self._before = storage.read_bytes(self._pointer) if storage.exists(self._pointer) else None

    @classmethod
    def resumed_or_new(cls, config: CommandConfig, *, section: str, resume: bool) -> "RunDirectory":
        """The unfinished run of these settings if ``<section>.resume`` asks for it and there is one, else a new one."""
        if not resume:
            return cls(config)
        run_id = unfinished(config, ignoring=(f"{section}.resume", "cluster"))
        if run_id:
            return cls(config, run_id=run_id)
        events.emit("warning", note=f"{section}.resume: no unfinished run of these settings in {config.out}; a new one")
        return cls(config)

    def decisions(self, *, section: str, inputs: dict[str, str]) -> dict[str, Any]:
        """What this run had measured and decided before it was interrupted, for it to keep to; nothing in a new run.

        Raises:
            ConfigError: digests of what it works on, by what they are of, are not what they were.
        """
        address = self.path(DECISIONS)
        if not self.resumed or not storage.exists(address):
            return {}
        earlier = json.loads(storage.read_bytes(address))
        changed = [name for name, digest in inputs.items() if earlier["inputs"].get(name, digest) != digest]
        if changed:
            raise ConfigError(
                [
                    f"{section}.resume: {' and '.join(changed)} changed since {self.address} was interrupted; "
                    f"leave {section}.resume out to start anew"
                ]
            )
        return earlier

    def decide(self, *, inputs: dict[str, str], **decisions: object) -> None:
        self.write_json(DECISIONS, {"inputs": inputs, **decisions})

    def path(self, *parts: str) -> str:
        return storage.join(self.address, *parts)

    def write(self, name: str, content: str | bytes) -> None:
        storage.write_bytes(self.path(name), content.encode() if isinstance(content, str) else content)

    def write_file(self, name: str, path: Path) -> None:
        """A file of this machine, however large."""
        storage.write_file(self.path(name), path)

    def write_json(self, name: str, content: dict[str, object]) -> None:
        self.write(name, json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n")

    def publish(
        self, summary: dict[str, object], *, pointer: bool = True, alone: bool = False, clear: Sequence[str] = ()
    ) -> None:
        """Write ``run.json``, then ``_SUCCESS``, then move ``<out>/LATEST`` to this run, if ``pointer``.

        ``clear``: folders that a run has needed until it was complete.

        Raises:
            RetailrayError: ``alone``, and another run moved it since this one began.
        """
        finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.write_json(
            "run.json",
            {
                "run_id": self.run_id,
                "started_at": self.started_at,
                "finished_at": finished,
                **summary,
                "made_by": made_by(self.machines),
            },
        )
        self.write("_SUCCESS", b"")
        try:
            if pointer:
                self._point(alone=alone)
        finally:
            for name in clear:
                self._clear(name)

    def _point(self, *, alone: bool) -> None:
        name = f"run_id={self.run_id}".encode()
        if not alone:
            storage.write_bytes(self._pointer, name)
        elif not storage.compare_and_swap(self._pointer, name, before=self._before):
            raise RetailrayError(
                f"{self._pointer} was moved by another run while this one was at work, and is left as it is; this "
                f"run's results are complete in {self.address}"
            )

    def _clear(self, name: str) -> None:
        try:
            storage.remove_folder(self.path(name))
        except StorageError as error:  # all is published, and what is left there harms nobody
            events.emit("warning", note=f"temporary files of the run could not be removed: {error}")


def address_of(out: str, run_id: str) -> str:
    """Where the directory of a run is."""
    return storage.join(out, f"run_id={run_id}")


def latest_run(out: str) -> str:
    """The address of the run that ``LATEST`` names. Raises StorageError where there is none."""
    return storage.join(out, storage.read_bytes(storage.join(out, "LATEST")).decode())


def unfinished(config: CommandConfig, *, ignoring: Sequence[str]) -> str | None:
    """The run id of the newest run of these settings below ``out`` without ``_SUCCESS``; ``ignoring``: dotted keys."""
    wanted = _without(config.model_dump(mode="json"), ignoring)
    for name, files in list_runs(config.out).items():
        if "_SUCCESS" in files:
            continue
        try:
            settings = yaml.safe_load(storage.read_bytes(storage.join(config.out, name, "config.yaml")))
        except yaml.YAMLError:
            continue  # of somebody else
        if isinstance(settings, dict) and _without(_with_defaults(settings, type(config)), ignoring) == wanted:
            return name.removeprefix("run_id=")
    return None


def _with_defaults(settings: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Settings as an earlier version resolved them; what it did not know yet is at its default."""
    filled = dict(settings)
    for name, field in kind.model_fields.items():
        section, known = field.annotation, filled.get(name)
        if name not in filled and not field.is_required():
            filled[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        elif isinstance(known, dict) and isinstance(section, type) and issubclass(section, BaseModel):
            filled[name] = _with_defaults(known, section)
    return filled


def run_names(out: str) -> list[str]:
    """Names of what may be runs below ``out``, the newest first."""
    return sorted((name for name in storage.folder_entries(out) if name.startswith("run_id=")), reverse=True)


def list_runs(out: str, *, after: str = "") -> dict[str, set[str]]:
    """Runs below ``out`` by the names of their directories, the newest first, and what lies directly in each.

    ``after``: the name of a run; only those that are newer.
    """
    names = [name for name in run_names(out) if name > after]
    pool = concurrent.futures.ThreadPoolExecutor(LISTINGS)  # years of nightly runs, one request each
    try:
        listed = pool.map(lambda name: storage.folder_entries(address_of(out, name.removeprefix("run_id="))), names)
        runs = dict(zip(names, listed, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # not for a store that does not answer
    return {name: files for name, files in runs.items() if "config.yaml" in files}


def _without(settings: dict[str, object], keys: Sequence[str]) -> dict[str, object]:
    """A copy without some dotted keys."""
    kept = json.loads(json.dumps(settings))
    for key in keys:
        *path, name = key.split(".")
        section = kept
        for part in path:
            section = section.get(part, {})
        section.pop(name, None)
    return kept
