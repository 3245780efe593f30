"""JSON documents, read as a stream: an array of records, or an object that holds one; and COCO's three arrays."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import ijson

from retailray import events
from retailray.data.records import Records, Row, in_pieces, typed
from retailray.data.text_files import text_of
from retailray.errors import CatalogError

LABEL = "label"  # the column of what annotations say of a picture
SEVERAL = "labels"  # and of all that they say, where that is more
ARRAY = "list"  # the column with the name of a record's array, where there are several
_CODES = ("category_id", "label_id", "label", "class_id")  # of an annotation
_IDS = ("id", "image_id")  # of a picture


def top_level_arrays(address: str, encoding: str) -> list[str]:
    """Names of the arrays of objects of a document; [''] if the document is an array itself.

    Raises:
        CatalogError: it is no JSON, or has no array of objects.
    """
    found: list[str] = []
    with _document(address, encoding) as text:
        for prefix, event, _ in ijson.parse(text):
            if event == "start_map" and prefix == "item":
                return [""]
            name = prefix.removesuffix(".item")
            if event == "start_map" and prefix.endswith(".item") and "." not in name and name not in found:
                found.append(name)
    if not found:
        raise CatalogError(f"{address}: this JSON document has no list of objects, one a picture or product")
    return found


def stream_json_document(address: str, encoding: str) -> Iterator[Records]:
    """The records of a document; see :func:`rows_of_document`."""
    return typed(address, lambda: in_pieces(rows_of_document(address, encoding)))


def rows_of_document(address: str, encoding: str) -> Iterator[tuple[int, Row]]:
    """Numbered records.

    Of an object with ``images`` and ``annotations`` (COCO, iMaterialist) the pictures, with what the annotations say of
    them in :data:`LABEL`: of several the one with the largest box; all of them in :data:`SEVERAL`. Of another object
    all arrays whose first records have the keys of the longest one's, their names in :data:`ARRAY`.
    """
    arrays = top_level_arrays(address, encoding)
    if {"images", "annotations"} <= set(arrays):
        yield from _annotated(address, encoding, arrays)
        return
    chosen = _alike(address, encoding, arrays)
    number = 0
    for name in chosen:
        for row in _items(address, encoding, name):
            number += 1
            yield number, row | ({ARRAY: name} if len(chosen) > 1 else {})


def _alike(address: str, encoding: str, arrays: list[str]) -> list[str]:
    """The longest of several arrays, and those that are like it; a warning names the others."""
    if len(arrays) == 1:
        return arrays
    lengths = {name: sum(1 for _ in _items(address, encoding, name)) for name in arrays}
    keys = {name: set(next(_items(address, encoding, name))) for name in arrays}
    longest = max(lengths, key=lambda name: lengths[name])
    chosen = [name for name in arrays if 2 * len(keys[name] & keys[longest]) > len(keys[name] | keys[longest])]
    if others := {name: lengths[name] for name in arrays if name not in chosen}:
        events.emit("warning", file=address, not_read=others, note="lists of other objects than the longest one's")
    return chosen


@contextlib.contextmanager
def _document(address: str, encoding: str) -> Iterator[Any]:
    with text_of(address, encoding) as text:
        try:
            yield text
        except ijson.JSONError as error:
            raise CatalogError(f"{address}: not JSON: {' '.join(str(error).split())[:200]}") from error


def _items(address: str, encoding: str, array: str) -> Iterator[Row]:
    with _document(address, encoding) as text:
        for number, row in enumerate(ijson.items(text, f"{array}.item" if array else "item", use_float=True), 1):
            if not isinstance(row, dict):
                raise CatalogError(f"{address}: record {number}: a JSON object is expected: {str(row)[:80]!r}")
            yield row


def _annotated(address: str, encoding: str, arrays: list[str]) -> Iterator[tuple[int, Row]]:
    names = {}
    if "categories" in arrays:
        names = {str(row.get("id")): str(row.get("name")) for row in _items(address, encoding, "categories")}
    said: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in _items(address, encoding, "annotations"):
        code = next((row[name] for name in _CODES if row.get(name) is not None), None)
        if code is not None and (image := row.get("image_id")) is not None:
            said[str(image)].append((_area(row), names.get(str(code), str(code))))
    for number, row in enumerate(_items(address, encoding, "images"), 1):
        mine = said.get(str(next((row[name] for name in _IDS if row.get(name) is not None), "")), [])
        several = sorted({label for _, label in mine})
        label = max(mine, key=lambda one: one[0])[1] if mine else None
        yield number, row | {LABEL: label, SEVERAL: several if len(several) > 1 else None}


def _area(annotation: Row) -> float:
    if isinstance(area := annotation.get("area"), int | float):
        return float(area)
    box = annotation.get("bbox")
    return float(box[2]) * float(box[3]) if isinstance(box, list) and len(box) == 4 else 0.0
