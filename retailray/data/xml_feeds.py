"""XML feeds of products (RSS, Atom, and others alike), read as a stream."""

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from retailray.data.records import Records, Row, in_pieces, typed
from retailray.data.text_files import text_of
from retailray.errors import CatalogError

RECORD_TAGS = frozenset({"item", "entry", "product", "offer", "record", "row"})


def stream_xml(address: str, encoding: str) -> Iterator[Records]:
    """One record for every element of a name in :data:`RECORD_TAGS`, else for every child of the root.

    Children become columns without their namespace; what is repeated becomes a list, and what has children an object.
    Attributes become columns with ``@`` before their name.

    Raises:
        CatalogError: it is no XML, or has entities or a DTD of its own, which a feed has no use for.
    """
    return typed(address, lambda: in_pieces(_rows(address, encoding)))


def _rows(address: str, encoding: str) -> Iterator[tuple[int, Row]]:
    number, depth = 0, 0
    record_depth: int | None = None
    try:
        with text_of(address, encoding) as text:
            for event, element in iterparse(text, events=("start", "end"), forbid_dtd=True):
                if event == "start":
                    depth += 1
                    if record_depth is None and _name(element.tag) in RECORD_TAGS:
                        record_depth = depth
                    continue
                if depth == (record_depth or 2) and (record_depth is None or _name(element.tag) in RECORD_TAGS):
                    number += 1
                    yield number, _record(element)
                if depth <= (record_depth or 2):
                    element.clear()
                depth -= 1
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
