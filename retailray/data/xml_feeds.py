"""XML feeds of products (RSS, Atom, and others alike), read as a stream."""

import contextlib
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from retailray.data.records import Records, Row, in_pieces, typed
from retailray.data.text_files import text_of
from retailray.errors import CatalogError

RECORD_TAGS = frozenset({"item", "entry", "product", "offer", "record", "row"})
LOOKED_AT = 5_000  # elements, for the name of records


def stream_xml(address: str, encoding: str) -> Iterator[Records]:
    """One record for every element of a name in :data:`RECORD_TAGS`, else for every child of the root.

    Children become columns without their namespace; what is repeated becomes a list, and what has children an object.
    Attributes become columns with ``@`` before their name.

    Raises:
        CatalogError: it is no XML, or has entities or a DTD of its own, which a feed has no use for.
    """
    return typed(address, lambda: in_pieces(rows_of_feed(address, encoding)))


def rows_of_feed(address: str, encoding: str) -> Iterator[tuple[int, Row]]:
    """Numbered records: the outermost elements of a record's name, at any depth."""
    tags = _record_tags(address, encoding)
    number, depth, inside = 0, 0, 0  # ``inside``: the depth of the record that is open
    with _events(address, encoding) as events:
        for event, element in events:
            is_record = _name(element.tag) in tags or (not tags and depth == (1 if event == "start" else 2))
            if event == "start":
                depth += 1
                if is_record and not inside:
                    inside = depth
                continue
            if depth == inside:
                number, inside = number + 1, 0
                yield number, _record(element)
            if not inside:
                element.clear()
            depth -= 1


def _record_tags(address: str, encoding: str) -> frozenset[str]:
    """:data:`RECORD_TAGS` if the first elements have one of them; nothing where every child of the root is a record."""
    with _events(address, encoding) as events:
        for number, (_, element) in enumerate(events):
            if _name(element.tag) in RECORD_TAGS:
                return RECORD_TAGS
            if number > LOOKED_AT:
                break
    return frozenset()


@contextlib.contextmanager
def _events(address: str, encoding: str) -> Iterator[Iterator[tuple[str, Element]]]:
    try:
        with text_of(address, encoding) as text:
            yield iterparse(text, events=("start", "end"), forbid_dtd=True)
    except (ParseError, DefusedXmlException) as error:
        raise CatalogError(f"{address}: not an XML feed that is read: {str(error)[:200]}") from error


def _name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _record(element: Element) -> Row:
    row: Row = {f"@{_name(name)}": value for name, value in element.attrib.items()}
    for child in element:
        name, value = _name(child.tag), _value(child)
        if name not in row:
            row[name] = value
        elif isinstance(row[name], list):
            row[name].append(value)
        else:
            row[name] = [row[name], value]
    return row


def _value(element: Element) -> Any:
    if len(element) or element.attrib:
        own = _record(element)
        text = (element.text or "").strip()
        return own | ({"value": text} if text else {})
    return (element.text or "").strip() or None
