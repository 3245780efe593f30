"""The settings of a command by their dotted names."""

import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SHOWN_CHOICES = 5  # that stand in place of a type; more of them follow the description


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


def is_section(kind: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def annotation_of(model: object, key: str) -> object:
    """The type of a setting; None for what lies inside of a list or a dict."""
    section, _, rest = key.partition(".")
    if not is_section(model):
        return None
    annotation = model.model_fields[section].annotation
    if rest:
        assert annotation is not None
        return annotation_of(annotation, rest)
    return annotation


def description_of(field: FieldInfo) -> str:
    """What a setting does, and the names that it takes where they are too many for :func:`type_name`."""
    text, kind = field.description or "", field.annotation
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    names = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return f"{text} One of: {', '.join(map(str, names))}." if len(names) > SHOWN_CHOICES else text


def type_name(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, arguments)) if len(arguments) <= SHOWN_CHOICES else "name"
    if origin in (types.UnionType, typing.Union):
        return type_name(next(argument for argument in arguments if argument is not type(None)))
    if origin is list and is_section(arguments[0]):
        return "JSON"
    if origin is list:
        return f"{type_name(arguments[0])},..."
    if origin is dict:
        return "JSON"
    return {"str": "text", "int": "int", "float": "number", "bool": "true|false"}.get(
        getattr(annotation, "__name__", ""), "text"
    )
