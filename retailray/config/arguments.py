"""From ``[--config FILE]... [--section.key VALUE]...`` to one frozen config, or to the list of all that is wrong.

pydantic-settings makes the command line out of the config models. jsonargparse was tried on the same grammar: it stops
at the first error, where this reports all of them with their source.
"""

import difflib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp

from retailray import storage
from retailray.config import COMMANDS, CommandConfig
from retailray.config.base import RENAMED, Section
from retailray.config.help_page import print_help
from retailray.config.keys import annotation_of, is_section, known_keys
from retailray.config.yaml_files import load_yaml
from retailray.errors import ConfigError, StorageError

_UNEXPECTED = "unexpected argument {token!r}: settings are given as --section.key VALUE"
MOST_SHOWN = 200  # characters of a value in an error


def parse(command: str, argv: Sequence[str]) -> CommandConfig:
    """The config of one command; ``--help`` prints and raises SystemExit(0).

    Raises:
        ConfigError: with every problem found in the files and on the command line.
    """
    if "--help" in argv or "-h" in argv:
        print_help(command, COMMANDS[command].config)
        raise SystemExit(0)
    problems: list[str] = []
    files, arguments = _split_arguments(command, argv, problems)
    values, sources, incomplete = _read_files(command, files, problems)
    sources |= dict.fromkeys((key for key, _ in arguments), "command line")
    tokens = list(itertools.chain.from_iterable((f"--{key}", value) for key, value in arguments))
    return _build(command, nest(values), tokens, sources, problems, incomplete=incomplete)


def from_keywords(command: str, files: Sequence[str], given: Mapping[str, Any]) -> CommandConfig:
    """The config of one command, of files and of what a Python program gives; the latter takes precedence.

    Args:
        given: settings by dotted key, or sections as mappings or config sections; for a section with a ``uri``, the
            address alone will do.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    keys = set(known_keys(COMMANDS[command].config))
    values, sources, incomplete = _read_files(command, list(files), problems)
    plain = {name: _plain(name, value, keys) for name, value in given.items() if value is not None}
    for key, value in _flatten(plain, keys):
        if key in keys:
            values[key], sources[key] = os.fspath(value) if isinstance(value, os.PathLike) else value, "keyword"
        else:
            problems.append(_unknown(command, key, "keyword"))
    return _build(command, nest(values), [], sources, problems, incomplete=incomplete)


def _plain(name: str, value: object, keys: set[str]) -> object:
    if isinstance(value, Section):
        return value.model_dump(exclude_unset=True)
    return {"uri": value} if isinstance(value, os.PathLike | str) and f"{name}.uri" in keys else value


def _build(
    command: str,
    values: dict[str, Any],
    tokens: list[str],
    sources: dict[str, str],
    problems: list[str],
    *,
    incomplete: bool,
) -> CommandConfig:
    """Validate all together. ``incomplete``: what is missing may stand in a file that could not be read."""
    model = COMMANDS[command].config
    try:
        config = CliApp.run(model, cli_args=tokens, cli_exit_on_error=False, **values)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not (incomplete and detail["type"] == "missing")]
        problems += [problem for detail in details for problem in _explain(model, detail, sources)]
    except Exception as error:  # argparse's and the CLI source's own complaints
        problems.append(f"command line: {error}")
    if problems:
        raise ConfigError(problems)
    return config


Pair = tuple[str, str | None]  # a key, and its value, if one was given


def tokenize(argv: Sequence[str]) -> Iterator[Pair]:
    """Yield the settings of a command line. A token that belongs to no setting comes as ``("", token)``."""
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--") or token.partition("=")[0] == "--":
            yield "", token
            continue
        key, has_value, text = token.removeprefix("--").partition("=")
        value: str | None = text
        if not has_value:
            value = None if not tokens or tokens[0].startswith("--") else tokens.pop(0)
        yield key, value


def divide(argv: Sequence[str], keys: set[str]) -> tuple[list[Pair], list[Pair]]:
    """Return the settings among ``keys``, and the others.

    Raises:
        ConfigError: an argument that belongs to no setting.
    """
    pairs = list(tokenize(argv))
    if strange := [value for key, value in pairs if not key]:
        raise ConfigError([_UNEXPECTED.format(token=token) for token in strange])
    return [pair for pair in pairs if pair[0] in keys], [pair for pair in pairs if pair[0] not in keys]


def join(pairs: Sequence[Pair]) -> list[str]:
    """Inverse of :func:`divide`: (key, value) pairs to arguments."""
    return [f"--{key}" if value is None else f"--{key}={value}" for key, value in pairs]


def leaves(settings: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return dotted keys and values of settings in sections; a mapping within a section is a value."""
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        found += (
            [(f"{name}.{key}", inner) for key, inner in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return found


def nest(flat: Mapping[str, object]) -> dict[str, Any]:
    """Return settings in sections, from dotted keys."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return nested


def _split_arguments(command: str, argv: Sequence[str], problems: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Config files and (key, value) pairs; what does not belong is noted in ``problems`` and left out."""
    keys = set(known_keys(COMMANDS[command].config))
    flags = {key for key in keys if annotation_of(COMMANDS[command].config, key) is bool}
    files: list[str] = []
    pairs: list[tuple[str, str]] = []
    for key, value in tokenize(argv):
        if not key:
            problems.append(_UNEXPECTED.format(token=value))
        elif key not in keys and key != "config":
            problems.append(_unknown(command, key, "command line"))
        elif value is None and key not in flags:
            problems.append(f"--{key} needs a value")
        elif key == "config":
            files.append(value or "")
        else:
            pairs.append((key, "true" if value is None else value))
    return files, pairs


def _unknown(command: str, key: str, source: str) -> str:
    readers = [other for other, one in COMMANDS.items() if key in known_keys(one.config)]
    if readers:
        return f"{key} ({source}): {command} does not read it and would ignore it; it belongs to {', '.join(readers)}"
    if key in RENAMED:
        where = next(one.name for one in COMMANDS.values() if RENAMED[key] in known_keys(one.config))
        return f"{key} ({source}): renamed to {RENAMED[key]}; retailray {where} --help describes it"
    near = difflib.get_close_matches(key, known_keys(COMMANDS[command].config), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"retailray {command} --help lists the keys"
    return f"{key} ({source}): unknown key; {hint}"


def _read_files(command: str, files: list[str], problems: list[str]) -> tuple[dict[str, Any], dict[str, str], bool]:
    """Merge YAML files, later over earlier. One file may serve several commands: what only others read is left.

    Returns:
        The values by dotted key, the file of each, and whether some of what is missing may stand in what could not be
        read.
    """
    keys, merged, sources, incomplete = set(known_keys(COMMANDS[command].config)), {}, {}, False
    everyone = set(itertools.chain.from_iterable(known_keys(one.config) for one in COMMANDS.values()))
    for file in files:
        try:
            loaded = load_yaml(storage.read_bytes(storage.normalize(file))) or {}
        except (StorageError, yaml.YAMLError, ValueError) as error:
            incomplete = True
            named = storage.PASSWORD.sub("://...@", file)
            problems.append(f"--config {named}: {' '.join(str(error).split())}")
            continue
        if not isinstance(loaded, dict):
            incomplete = True
            problems.append(f"--config {file}: a mapping of sections is expected, found {type(loaded).__name__}")
            continue
        for key, value in _flatten(loaded, everyone):
            if key in keys:
                merged[key], sources[key] = value, file
            elif any(known.startswith(f"{key}.") for known in everyone):
                incomplete = True
                problems.append(f"{key} ({file}): a section with settings is expected, found {_kind(value)}")
            elif key not in everyone:
                problems.append(_unknown(command, key, file))
    return merged, sources, incomplete


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")


def _flatten(values: Mapping[str, object], leaves: set[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if value is None and any(leaf.startswith(f"{key}.") for leaf in leaves):
            continue  # a section without entries
        if isinstance(value, dict) and key not in leaves:
            yield from _flatten(value, leaves, f"{key}.")
        else:
            yield key, value


def _explain(model: type[CommandConfig], detail: ErrorDetails, sources: dict[str, str]) -> list[str]:
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        kind = annotation_of(model, key)
        section = kind.model_fields if is_section(kind) else {}
        missing = [f"{key}.{name}" for name, field in section.items() if field.is_required()] or [key]
        return [f"{name}: required and not given" for name in missing]
    if not key:
        return [message]
    owner = next((source for known, source in sources.items() if key == known or key.startswith(known + ".")), "config")
    value = storage.PASSWORD.sub("://...@", json.dumps(detail["input"], default=str))
    if len(value) > MOST_SHOWN:
        value = f"{value[:MOST_SHOWN]}... ({len(value)} characters)"
    return [f"{key} = {value} ({owner}): {message}"]
