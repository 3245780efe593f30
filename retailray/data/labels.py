"""Labels in several spellings."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable


def normalized_label(label: str) -> str:
    """The one spelling of labels that differ in case, surrounding blanks or Unicode form."""
    return unicodedata.normalize("NFC", label).strip().casefold()


def labels_in_several_spellings(labels: Iterable[str]) -> list[list[str]]:
    """Labels that are one under :func:`normalized_label`, in groups of two or more."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[normalized_label(label)].append(label)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]
