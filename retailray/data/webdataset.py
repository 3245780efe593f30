"""WebDataset shards: tar files in which the files of one sample follow each other and share their name."""

import itertools
import json
import posixpath
import re
from collections.abc import Iterator

from retailray import storage
from retailray.data.image_files import SUFFIXES
from retailray.data.records import Records, Row, in_pieces, typed
from retailray.errors import CatalogError

_LABELS = ("cls", "label", "category", "class", "label_name")  # what may say the label, of a sample or in its JSON
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2|tar\.gz|tar\.bz2)$", re.IGNORECASE)
_SAID = (".cls", ".json", ".txt")  # endings of what is said of a picture
_MOST_BYTES = 1 << 20  # of a file beside the picture
LOOKED_AT = 50  # samples, for what a shard is
_NOT_SAMPLES = ("__macosx/", "._")


def is_shard(names: list[str]) -> bool:
    """True if most pictures of an archive have a file beside them that says something: ``000.jpg``, ``000.cls``."""
    stems = [posixpath.join(folder, name.split(".")[0]) for folder, name in map(posixpath.split, names)]
    pictures = {stem for stem, name in zip(stems, names, strict=True) if name.lower().endswith(SUFFIXES)}
    said = {stem for stem, name in zip(stems, names, strict=True) if name.lower().endswith(_SAID)}
    return len(pictures & said) > len(pictures) / 2


def columns_of_shard(address: str) -> list[str]:
    """The columns of its first samples; no more is read."""
    first = itertools.islice(_samples(address, ""), LOOKED_AT)
    return list(dict.fromkeys(name for row in first for name in row))


def stream_shard(address: str, below: str) -> Iterator[Records]:
    """A record for every sample: ``key``, ``image`` (where it lies in the shard, or a list), ``label`` and what its
    JSON has. One reading from front to end; pictures are not read. A sample without a picture has none in its record.
    ``below``: the folder of all shards; keys begin with the shard's path below it.

    Raises:
        CatalogError: JSON that is none. StorageError: the archive is damaged.
    """
    return typed(address, lambda: in_pieces(enumerate(_samples(address, below), 1)))


def _samples(address: str, below: str) -> Iterator[Row]:
    path = address[len(below) :].strip("/") if below and address.startswith(below) else posixpath.basename(address)
    stem = _ARCHIVE.sub("", path)
    key, row, pictures = "", dict[str, object](), list[str]()

    def sample() -> Row:
        label = next((row[name] for name in _LABELS if row.get(name) not in (None, "")), None)
        image = pictures[0] if len(pictures) == 1 else pictures or None
        return row | {"key": f"{stem}/{key}", "image": image, "label": label}

    def is_said(name: str) -> bool:
        return not name.lower().endswith(SUFFIXES)

    for name, entry, data in storage.read_members(address, is_said, max_bytes=_MOST_BYTES + 1):
        if name.lower().startswith(_NOT_SAMPLES):
            continue
        folder, base = posixpath.split(name)
        first, _, ending = base.partition(".")
        if (posixpath.join(folder, first)) != key:
            if key:
                yield sample()
            key, row, pictures = posixpath.join(folder, first), {}, []
        if data is None:
            place = storage.member_address("", name, offset=entry.offset, size=entry.size)
            pictures.append(place.removeprefix("!/"))
        elif len(data) <= _MOST_BYTES:
            row |= _said(address, name, ending.lower(), data)
    if key:
        yield sample()


def _said(address: str, name: str, ending: str, data: bytes) -> Row:
    text = data.decode("utf-8", errors="replace")
    if ending != "json":
        return {ending: text.strip()}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CatalogError(f"{address}: {name}: not JSON ({error})") from error
    return found if isinstance(found, dict) else {ending: text}
