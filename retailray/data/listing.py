"""What lies where, without reading it: identity and size of the images that a catalog names.

A listing tells a thousand objects a request, page by page; local files are asked one by one, which costs little. What
has no identity (http, and what is not found) is read and told by its bytes.
"""

import bisect
import contextlib
import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa

from retailray import events, storage
from retailray.errors import StorageError

RANGES, RANGE_ROWS = 8, 5_000  # listings of one folder at once, at most; images in a range, at least
# a listing that tells this many objects for one that is wanted is given up: asking for each of them costs less
MAX_RATIO, MAX_FREE = 20, 20_000
LISTING_PAYS = 8  # images of a store; fewer are asked for one by one
MAX_FOLDERS = 64  # most subfolders that are listed instead of their common parent
Children = Callable[[str, int], tuple[list[str], bool]]
LISTED = pa.schema([("uri", pa.string()), ("identity", pa.string()), ("size", pa.int64())])


def list_images(
    uris: Iterable[list[str]],
    folders: list[str],
    num_images: int,
    *,
    covered: list[str],
    given_up: list[dict[str, object]],
    sample: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Tables of :data:`LISTED`; a superset of the images that have an identity.

    Args:
        uris: all addresses, in lists. folders: those that hold all images (:func:`narrowed`).
        covered: gets the folders that were listed to the end: what is below them and was not told is not there. A
            store that cannot be listed is left out, with a warning. given_up: gets the folders that hold too much else,
            with the numbers. sample: some of the addresses, drawn at random; they say where long listings are cut into
            ranges that are listed at once.
    """
    remote = [folder for folder in folders if storage.is_uri(folder) and not folder.startswith("http")]
    if any(not storage.is_uri(folder) for folder in folders):
        for part in uris:
            local = [uri for uri in part if storage.is_local(uri)]
            yield _table([(uri, *found) for uri in local if (found := _local(uri))])
        covered.append("")
    budget = _Budget(num_images)
    for folder in remote:
        try:
            for page in storage.object_pages(folder, bounds=_bounds(folder, sample, num_images)):
                if not budget.has(len(page)):
                    given_up.append(budget.given_up(folder))
                    break
                yield _table(page)
            else:
                covered.append(folder)
        except (StorageError, NotImplementedError) as error:
            events.emit("warning", not_listed=folder, reason=str(error)[:300], note="its images are queried one by one")
            given_up.append({"folder": folder, "reason": str(error)[:300]})


class _Budget:
    """Of objects that listings may tell for so many images that are wanted."""

    def __init__(self, num_images: int) -> None:
        self.num_images, self.most, self.told = num_images, max(MAX_FREE, MAX_RATIO * num_images), 0

    def has(self, more: int) -> bool:
        self.told += more
        return self.told <= self.most

    def given_up(self, folder: str) -> dict[str, object]:
        facts = {"folder": folder, "objects": self.told, "images": self.num_images}
        note = "the folder holds much more than the catalog's images: they are asked for one by one"
        events.emit("warning", not_listed=folder, objects=self.told, images=self.num_images, note=note)
        return facts


def narrowed(folders: list[str], children: Children) -> list[str]:
    """Folders that hold all images of ``folders``, and less else: they are gone down into while they are few.

    ``children``: for a folder, the names of the folders in it that hold images, so many at most, and whether images lie
    in the folder itself.
    """
    open_ = [folder for folder in folders if storage.is_uri(folder)]
    done: list[str] = []
    while open_:
        folder = open_.pop()
        names, has_own = children(folder, MAX_FOLDERS + 1)
        room = MAX_FOLDERS - len(open_) - len(done)
        if has_own or not names or len(names) > room:
            done.append(folder)
        else:
            open_ += [f"{folder}/{name}" for name in names]
    return sorted([*done, *(folder for folder in folders if not storage.is_uri(folder))])


def identities(uris: Sequence[str]) -> list[str | None]:
    """What tells one content at an address from another, as :func:`retailray.storage.identities`, by listings where
    they pay."""
    by_place: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        if (
            storage.is_uri(uri)
            and not uri.startswith("http")
            and not storage.parse_embedded(uri)
            and not storage.parse_member(uri)
        ):
            by_place[storage.place_of(uri)].add(uri)
    found: dict[str, str | None] = {}
    for members in by_place.values():
        if len(members) >= LISTING_PAYS:
            folders = narrowed(
                [shared_folder(min(members), max(members))], functools.partial(_children, sorted(members))
            )
            pages = list_images([], folders, len(members), covered=[], given_up=[], sample=sorted(members)[::50])
            for page in pages:
                told = zip(page.column("uri").to_pylist(), page.column("identity").to_pylist(), strict=True)
                found |= {uri: identity for uri, identity in told if uri in members}
    rest = [uri for uri in dict.fromkeys(uris) if uri not in found]
    found |= dict(zip(rest, storage.identities(rest), strict=True))
    return [found[uri] for uri in uris]


def shared_folder(first: str, last: str) -> str:
    """The deepest folder above two addresses, which bound all others in order."""
    count = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:count].rpartition("/")[0]


def _children(uris: list[str], folder: str, most: int) -> tuple[list[str], bool]:
    """What :func:`narrowed` asks, of sorted addresses."""
    begin, end = (bisect.bisect_left(uris, f"{folder}{mark}") for mark in ("/", "0"))  # 0 comes after /
    inside = (uri[len(folder) + 1 :] for uri in uris[begin:end])
    names: dict[str, None] = {}
    has_own = False
    for path in inside:
        name, separator, _ = path.partition("/")
        has_own |= not separator
        if separator and len(names) < most:
            names[name] = None
    return list(names), has_own


def files_below(folder: str, wanted: int) -> list[str] | None:
    """Every file below a folder, of a store or of this machine; None, with a warning, where there are so many more than
    are ``wanted`` that listing them is given up. Raises StorageError."""
    budget = _Budget(wanted)
    found: list[str] = []
    pages = _walk(folder) if storage.is_local(folder) else storage.object_pages(folder)
    for page in pages:
        if not budget.has(len(page)):
            budget.given_up(folder)
            return None
        found += [address for address, _, _ in page]
    return found


def _walk(folder: str) -> Iterator[list[tuple[str, str | None, int]]]:
    for path, _, names in os.walk(folder):
        yield [(os.path.join(path, name), None, 0) for name in names]


def _bounds(folder: str, sample: Sequence[str], num_images: int) -> list[str]:
    """Addresses below a folder that cut the catalog's images there into equal parts."""
    inside = sorted(uri for uri in sample if uri.startswith(f"{folder}/"))
    parts = min(RANGES, num_images // RANGE_ROWS)
    return sorted({inside[len(inside) * at // parts] for at in range(1, parts)}) if len(inside) > RANGES else []


def _table(rows: Sequence[tuple[str, str | None, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTED, strict=True)], LISTED)


def _local(uri: str) -> tuple[str, int] | None:
    path = storage.canonical(uri)
    for name in (path, *storage.other_unicode_forms(path)):  # as reading does
        with contextlib.suppress(OSError, ValueError):
            stat = os.stat(name)
            return storage.local_identity(stat), stat.st_size
    return None
