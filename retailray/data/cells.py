"""What one cell of a catalog says: the addresses of pictures, and a label in a tree of labels."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from retailray.data.image_files import SUFFIXES

_SEVERAL = re.compile(r"[\[({|;,]")  # without one of these a text is one address
SEPARATORS = ("|", ";", ",")  # between addresses, where catalog.image_separator names none
MAX_PICTURES = 1_000  # of one record
_URL_KEYS = ("url", "src", "link", "href", "path", "file_name", "image", "large", "hi_res")  # of an object in a list
_LIST_OF_TEXTS = re.compile(r"\s*\[\s*([\"']|\])")


class BadCell(ValueError):
    """A cell cannot be read; the message says why."""


def lookup(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path within a nested value: keys of objects, numbers (from 0) of lists.

    A key that is asked of a list is asked of each of its elements. None where there is nothing.
    """
    for at, name in enumerate(path):
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, list | tuple):
            if not name.isdigit():
                found = [lookup(one, path[at:]) for one in value]
                return [one for one in found if one is not None]
            value = value[int(name)] if int(name) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def _parsed(text: str) -> Any:
    """The value of a text that is JSON or a Python literal; the text itself where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def addresses_in(value: Any, separator: str | None) -> list[str]:
    """The addresses of pictures in a cell: of an address, a list, or several addresses in one text.

    Args:
        separator: between addresses; None: found, where every part of the text looks like an address.

    Raises:
        BadCell: a list that does not close, objects without a known key, or too many addresses.
    """
    found = _addresses(value, separator)
    if len(found) > MAX_PICTURES:
        raise BadCell(f"it names {len(found)} pictures; at most {MAX_PICTURES} of one record are read")
    return found


def _addresses(value: Any, separator: str | None) -> list[str]:
    if not separator and isinstance(value, str) and not _SEVERAL.search(value):
        return [value] if value.strip() else []
    if value is None or value != value:  # NaN
        return []
    if isinstance(value, list | tuple):
        return [one for item in value for one in _addresses(item, separator="")]
    if isinstance(value, dict):
        named = next((name for name in _URL_KEYS if value.get(name)), None)
        if named is None:
            raise BadCell(f"an object with the keys {', '.join(map(str, value))[:200]}: name one, as in column.key")
        return _addresses(value[named], separator="")
    text = str(value)
    if not text.strip():
        return []
    if _LIST_OF_TEXTS.match(text):
        parsed = _parsed(text.strip())
        if not isinstance(parsed, list | tuple) and text.strip().lower().endswith(SUFFIXES):
            return [text]  # a name of a file
        if not isinstance(parsed, list | tuple):
            raise BadCell(f"a list that cannot be read: {text.strip()[:80]!r}")
        return _addresses(parsed, separator)
    if separator == "" or text.lstrip().lower().startswith("data:"):
        return [text]
    if separator is not None:
        return _parts(text, separator)
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]") and _all_addresses(inner := _parts(bare[1:-1], ",")):
        return inner  # [http://a/1.jpg, http://a/2.jpg], as str() of a list without quotes
    for one in SEPARATORS:
        if len(parts := _parts(text, one)) > 1 and _all_addresses(parts):
            return parts
    return [text]


def _parts(text: str, separator: str) -> list[str]:
    """What stands between separators; a backslash before one keeps it."""
    found = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part for one in found if (part := one.replace(f"\\{separator}", separator).strip())]


def _all_addresses(parts: Sequence[str]) -> bool:
    """True if every part is an address of its own: all have a scheme, or none has and all end as pictures do."""
    with_scheme = [bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", part)) for part in parts]
    if any(with_scheme):
        return all(with_scheme)
    return bool(parts) and all(part.lower().endswith(SUFFIXES) for part in parts)


def label_in(value: Any, separator: str | None, level: str, list_separator: str | None) -> str:
    """The label in a cell: of a path (``Home > Mugs``, or a list) what stands at a level; of several paths the first.

    Args:
        separator: between the levels of a path; None: labels are no paths. level: ``last``, ``first``, a number from 1
            or ``path``. list_separator: between several labels or paths in one text; a backslash before it keeps it.
    """
    value = _listed(value)
    if isinstance(value, list | tuple) and not separator and all(isinstance(one, str) for one in value):
        return _at_level([one for one in value if one.strip()], level, " > ")
    value = _first(value)
    text = "" if value is None or value != value else str(value)
    if list_separator and text:
        text = _first_of_several(text, list_separator, separator)
    if not separator or not text.strip():
        return text
    levels = [part.strip() for part in text.split(separator.strip() or separator)]
    return _at_level([part for part in levels if part], level, f" {separator.strip()} ")


def _at_level(levels: Sequence[str], level: str, separator: str) -> str:
    if not levels or level == "path":
        return separator.join(levels)
    if level in ("last", "first"):
        return levels[-1 if level == "last" else 0]
    return levels[int(level) - 1] if int(level) <= len(levels) else ""


def _listed(value: Any) -> Any:
    """The list in a text, if it is one; of a list of lists the first."""
    if isinstance(value, str) and _LIST_OF_TEXTS.match(value):
        parsed = _parsed(value.strip())
        value = parsed if isinstance(parsed, list | tuple) else value
    while isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
        value = value[0]
    return value


def _first(value: Any) -> Any:
    while isinstance(value, list | tuple | dict):
        if isinstance(value, dict):
            value = next((value[name] for name in ("value", "name", "label", "text") if value.get(name)), None)
        else:
            value = next((one for one in value if one not in (None, "")), None)
    return value


def _first_of_several(text: str, list_separator: str, separator: str | None) -> str:
    """The first of several labels; of paths the first that is one."""
    mark = list_separator.strip() or list_separator
    return part_of_label(text, separator, list_separator).replace(f"\\{mark}", mark)


def part_of_label(text: str, separator: str | None, list_separator: str | None) -> str:
    """What of a cell says the label, as it is written: all of it, or of several labels or paths the first."""
    if not list_separator:
        return text
    mark = list_separator.strip() or list_separator
    parts = [part.strip() for part in re.split(rf"(?<!\\){re.escape(mark)}", text)]
    parts = [part for part in parts if part]
    deep = [part for part in parts if separator and separator.strip() in part]
    return (deep or parts or [""])[0]
