"""The labels of a classifier, in the order of its outputs, as files have them; renamed and dropped by a map."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping

from retailray import storage
from retailray.errors import ModelError
from retailray.models.state_dicts import check_size

MAX_BYTES = 256 << 20
OTHERS = "*"  # in a map: all that it does not name
_NUMBERS = ("index", "id", "class", "number")  # columns with an output's number


def read_labels(address: str) -> list[str]:
    """Labels of a text file (one a line), a JSON file or a CSV file.

    JSON: a list; an object of numbers to labels, as ``id2label``; or of labels to numbers, as ``class_to_idx``. CSV: a
    column ``label``, and ``index`` where the lines are not in order; or one column without a header.

    Raises:
        ModelError: it is none of these, or its labels are empty or not unique. StorageError: it cannot be read.
    """
    check_size(address, MAX_BYTES, setting="bundle.labels")
    try:
        text = storage.read_bytes(address).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"bundle.labels = {address}: not text in UTF-8 ({error})") from error
    ending = address.lower().rpartition(".")[2]
    try:
        if ending == "json":
            labels = labels_of_json(json.loads(text))
        elif ending in ("csv", "tsv"):
            labels = _of_csv(text, "\t" if ending == "tsv" else ",")
        else:
            labels = [line.strip() for line in text.splitlines()]
            while labels and not labels[-1]:
                labels.pop()
    except (ValueError, csv.Error) as error:
        raise ModelError(
            f"bundle.labels = {address}: {error}; give one label a line, a JSON list, or a CSV file with a column label"
        ) from error
    check_labels(labels, source=f"bundle.labels = {address}")
    return labels


def labels_of_json(found: object) -> list[str]:
    """Raises ValueError where it is no list of labels, and no object that numbers them from 0."""
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return list(found)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"expected a list of labels or an object, found {type(found).__name__}")
    if all(isinstance(value, str) for value in found.values()) and all(name.isdecimal() for name in found):
        return _numbered((int(name), value) for name, value in found.items())
    if all(type(value) is int for value in found.values()):
        return _numbered((value, name) for name, value in found.items())
    raise ValueError("expected an object of numbers to labels, or of labels to numbers")


def _of_csv(text: str, delimiter: str) -> list[str]:
    lines = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
    rows = [row for row in lines if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError("it is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    if "label" in header:
        at, number = header.index("label"), next((header.index(name) for name in _NUMBERS if name in header), None)
        if short := next((line for line, row in enumerate(rows, 1) if len(row) != len(header)), None):
            raise ValueError(f"line {short} has not as many cells as the header")
        labels = [row[at].strip() for row in rows[1:]]
        if number is None:
            return labels
        return _numbered(zip((int(row[number]) for row in rows[1:]), labels, strict=True))
    if any(len(row) != 1 for row in rows):
        raise ValueError(f"no column label among {', '.join(header)}")
    return [row[0].strip() for row in rows]


def _numbered(pairs: Iterable[tuple[int, str]]) -> list[str]:
    pairs = sorted(pairs)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ValueError("the numbers of the labels are not 0, 1, 2 and so on, each once")
    return [label for _, label in pairs]


def check_labels(labels: list[str], *, source: str) -> None:
    """Raises ModelError where labels are empty, not unique, or fewer than two."""
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    problems = []
    if len(labels) < 2:
        problems.append(f"{len(labels)} labels, and a classifier has two or more")
    if "" in labels:
        problems.append(f"label {labels.index('') + 1} is empty")
    if any(repeated):
        places = [number for number, label in enumerate(labels) if label == repeated[0]]
        where = " and ".join(map(str, places[:3]))
        problems.append(f"{len(repeated)} labels occur more than once, first {repeated[0]!r} (outputs {where}, from 0)")
    if problems:
        raise ModelError(
            f"{source}: {'; '.join(problems)}; every output has one label of its own: name a file with such labels as "
            "bundle.labels"
        )


def mapped(labels: list[str], changes: Mapping[str, str | None]) -> tuple[list[int], list[str]]:
    """Which outputs are kept, and their labels then. ``changes``: label to new label; None or empty drops an output;
    ``*``: what becomes of all others (they keep their labels).

    Raises:
        ModelError: it names labels that are not there, or two outputs would have one label.
    """
    if strange := sorted(changes.keys() - set(labels) - {OTHERS}):
        raise ModelError(
            f"bundle.label_map: {len(strange)} labels that the model does not have, first {strange[0]!r}; it has "
            f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}"
        )
    if changes.get(OTHERS):
        raise ModelError(f"bundle.label_map: {OTHERS} can only drop, by null: two outputs cannot have one label")
    drops_others = OTHERS in changes
    kept = [
        (number, new)
        for number, label in enumerate(labels)
        if (new := changes.get(label, None if drops_others else label))
    ]
    found = [label for _, label in kept]
    check_labels(found, source="bundle.label_map leaves")
    return [number for number, _ in kept], found
