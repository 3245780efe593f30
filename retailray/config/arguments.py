"""From ``[--config FILE]... [--section.key VALUE]...`` to one frozen config, or to the list of all that is wrong.

pydantic-settings makes the command line out of the config models. jsonargparse was tried on the same grammar: it stops
at the first error, where this reports all of them with their source.
"""

import difflib
import itertools
import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliApp

from retailray import storage
from retailray.config import COMMANDS, CommandConfig
from retailray.config.base import RENAMED
from retailray.errors import ConfigError, StorageError

EXIT_CODES = (
    "\nExit codes: 0 done; 1 failed; 2 the command line or a config file is wrong; 3 done, but more rows failed than\n"
    "score.max_error_rate; 4 a check failed (check.fail_on, score.max_drift, promote.*, doctor); 130 interrupted"
)
_UNEXPECTED = "unexpected argument {token!r}: settings are given as --section.key VALUE"
MOST_VALUES = 100_000  # of a config file
MOST_SHOWN = 200  # characters of a value in an error


def known_keys(model: type[BaseModel]) -> list[str]:
    """Dotted names of all settings that a command reads, in order."""
    unused: frozenset[str] = getattr(model, "unused", frozenset())
    return [key for key in _all_keys(model) if key not in unused]


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if is_section(field.annotation):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_section(kind: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _annotation(model: Any, key: str) -> Any:
    """The type of a setting; None for what lies inside of a list or a dict."""
    section, _, rest = key.partition(".")
    if not is_section(model):
        return None
    annotation = model.model_fields[section].annotation
    if rest:
        assert annotation is not None
        return _annotation(annotation, rest)
    return annotation


def parse(command: str, argv: Sequence[str]) -> CommandConfig:
    """The config of one command; ``--help`` prints and raises SystemExit(0).

    Raises:
        ConfigError: with every problem found in the files and on the command line.
    """
    model = COMMANDS[command].config
    if "--help" in argv or "-h" in argv:
        _print_help(command, model)
        raise SystemExit(0)
    problems: list[str] = []
    files, arguments = _split_arguments(command, argv, problems)
    values, sources, incomplete = _read_files(command, files, problems)
    sources |= dict.fromkeys((key for key, _ in arguments), "command line")
    tokens = list(itertools.chain.from_iterable((f"--{key}", value) for key, value in arguments))
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


def leaves(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return dotted keys and values of settings in sections; a mapping within a section is a value."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += (
            [(f"{name}.{key}", inner) for key, inner in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return found


def nest(flat: dict[str, Any]) -> dict[str, Any]:
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
    flags = {key for key in keys if _annotation(COMMANDS[command].config, key) is bool}
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
        The values by section, the file of each key, and whether some of what is missing may stand in what could not be
        read.
    """
    keys, merged, sources, incomplete = set(known_keys(COMMANDS[command].config)), {}, {}, False
    everyone = set(itertools.chain.from_iterable(known_keys(one.config) for one in COMMANDS.values()))
    for file in files:
        try:
            loaded = _load_yaml(storage.read_bytes(storage.normalize(file))) or {}
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
    return nest(merged), sources, incomplete


class _UniqueKeys(yaml.SafeLoader):
    """YAML that says no to a key that is given twice: the first one would be ignored in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.YAMLError(f"{key!r} is given twice, in lines {seen[key]} and {line}")
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep)


def _load_yaml(data: bytes) -> Any:
    loader = _UniqueKeys(data)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (number := _num_values(node, {})) > MOST_VALUES:
            raise yaml.YAMLError(f"{number} values after expanding aliases (*name); the limit is {MOST_VALUES}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds when its aliases are written out. Raises YAMLError where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise yaml.YAMLError("an alias (*name) refers to a value that contains it")
    if id(node) not in known:
        known[id(node)] = 0  # until it is counted
        pairs = isinstance(node, yaml.MappingNode)
        inside = itertools.chain.from_iterable(node.value) if pairs else node.value
        known[id(node)] = 1 + sum(_num_values(one, known) for one in inside)
    return known[id(node)]


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")


def _flatten(values: dict[str, Any], leaves: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if value is None and any(leaf.startswith(f"{key}.") for leaf in leaves):
            continue  # a section without entries
        if isinstance(value, dict) and key not in leaves:
            yield from _flatten(value, leaves, f"{key}.")
        else:
            yield key, value


def _explain(model: type[CommandConfig], detail: Any, sources: dict[str, str]) -> list[str]:
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        kind = _annotation(model, key)
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


def _print_help(command: str, model: type[CommandConfig]) -> None:
    """Print the command's settings by section: name, type, default, help. Wide terminals get one line a setting."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 110)  # narrower columns break every line; pagers and pipes have no width
    record = COMMANDS[command]
    console.print(f"[bold]retailray {command}[/] [--config FILE]... [--section.key VALUE]...\n")
    console.print(f"  {record.summary[0].upper()}{record.summary[1:]}.\n")
    console.print("  --config FILE   YAML with these sections; may be given several times, later files win\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if is_section(annotation):
            doc = " ".join((annotation.__doc__ or "").split())
            table.add_row(f"\n[bold]{name}[/]", "", f"\n{escape(doc)}")
            for inner, inner_field in annotation.model_fields.items():
                if f"{name}.{inner}" not in model.unused:
                    table.add_row(*_help_row(f"{name}.{inner}", inner_field))
        elif name not in model.unused:
            table.add_row(*_help_row(name, field))
    console.print(table)
    console.print(EXIT_CODES)
    if record.example:
        console.print(f"\nExample:\n  retailray {command} {record.example}", soft_wrap=True)


def _help_row(key: str, field: Any) -> tuple[str, str, str]:
    from rich.markup import escape

    text = field.description or ""
    if field.is_required():
        text += " (required)"
    elif field.default is not None and field.default not in ([], {}):
        text += f" (default: {field.default})"
    return f"  --{key}", escape(type_name(field.annotation)), escape(text)


def type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, arguments)) if len(arguments) <= 5 else "name"
    if origin in (types.UnionType, typing.Union):
        return type_name(next(argument for argument in arguments if argument is not type(None)))
    if origin is list and is_section(arguments[0]):
        return "JSON"
    if origin is list:
        return f"{type_name(arguments[0])},..."
    if origin is dict:
        return "JSON"
    return {"str": "text", "int": "int", "float": "number", "bool": "true|false"}.get(annotation.__name__, "text")
