"""Files within ZIP and tar archives: ``<archive>!/<name>``, read where they lie and never unpacked to a disk."""

import collections
import contextlib
import functools
import itertools
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from retailray.errors import ImageError, NotFound, StorageError
from retailray.storage.addresses import Member, is_local
from retailray.storage.failures import image_error, storage_error
from retailray.storage.objects import open_binary
from retailray.storage.opening import store_of

KEPT_ZIPS = 2  # of a thread
KEPT_INDEXES = 4  # of this process: consecutive rows lie in one archive
COALESCED_BYTES = 64 << 10  # what lies between two members is read along up to this size
RANGE_BYTES = 16 << 20  # that are read from an archive at once
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # what unpacks to more than both is no table; text packs to a tenth or so
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


class Entry(NamedTuple):
    """A file of an archive: its size unpacked, and in a plain tar file where its bytes are (else -1) [bytes]."""

    size: int
    offset: int


_indexes: collections.OrderedDict[str, dict[str, Entry]] = collections.OrderedDict()
_of_thread = threading.local()
_lock = threading.Lock()


def is_zip(archive: str) -> bool:
    return archive.lower().endswith(".zip")


def is_plain_tar(archive: str) -> bool:
    return archive.lower().endswith(".tar")


def read_index(archive: str, version: str = "") -> dict[str, Entry]:
    """The files of an archive by name, in its order; the first of several with one name.

    ``version``: what identifies the archive's content; the index is kept in this process under it.

    Raises:
        StorageError: it cannot be read, or is damaged.
    """
    key = f"{archive} {version}"
    with _lock:
        if version and key in _indexes:
            _indexes.move_to_end(key)
            return _indexes[key]
    index: dict[str, Entry] = {}
    with opened(archive) as file:
        for name, entry, _ in _entries(archive, file):
            index.setdefault(name, entry)
    with _lock:
        if version:
            while len(_indexes) >= KEPT_INDEXES:
                _indexes.popitem(last=False)
            _indexes[key] = index
    return index


def first_names(archive: str, most: int) -> list[str]:
    """Names of the first files of an archive, ``most`` at most. Raises StorageError."""
    with opened(archive) as file:
        return [name for name, *_ in itertools.islice(_entries(archive, file), most)]


@contextlib.contextmanager
def opened(archive: str) -> Iterator[Any]:
    """The archive's bytes. Raises StorageError, also for what is damaged in it."""
    with _local_file(archive) if is_local(archive) else open_binary(archive) as file:
        try:
            yield file
        except StorageError:
            raise
        except BROKEN as error:
            raise StorageError(f"{archive}: the archive is damaged or of no kind that is read ({error})") from error


def _local_file(archive: str) -> Any:
    """Without a layer that waits for stores: the headers of a tar file are some thousand short reads."""
    try:
        return open(store_of(archive)[1], "rb", buffering=1 << 20)
    except OSError as error:
        raise storage_error(error, archive) from error


def _entries(archive: str, file: Any) -> Iterator[tuple[str, Entry, Callable[[int], bytes]]]:
    """Name, place, and what reads the first bytes of each file, before the next one is asked for."""
    if is_zip(archive):
        with zipfile.ZipFile(file) as zipped:
            for one in zipped.infolist():
                if not one.is_dir():
                    yield (
                        _plain(one.filename),
                        Entry(one.file_size, -1),
                        functools.partial(_read_first, zipped.open, one),
                    )
        return
    plain = is_plain_tar(archive)
    with tarfile.open(fileobj=file, mode="r:" if plain else "r|*") as tar:
        for member in tar:
            if member.isfile():
                entry = Entry(member.size, member.offset_data if plain else -1)
                # where it lies in one piece, as everywhere but in sparse files: a tenth of the time
                in_place = plain and not member.issparse()
                read = (
                    functools.partial(_read_at, file, entry)
                    if in_place
                    else functools.partial(_read_first, tar.extractfile, member)
                )
                yield _plain(member.name), entry, read
            tar.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen


def _read_first(open_: Callable[[Any], Any], member: Any, num_bytes: int) -> bytes:
    with open_(member) as inside:
        return inside.read(num_bytes)


def _read_at(file: Any, entry: Entry, num_bytes: int) -> bytes:
    file.seek(entry.offset)
    return file.read(min(entry.size, num_bytes))


def _plain(name: str) -> str:
    return name.removeprefix("./")


@contextlib.contextmanager
def open_member(member: Member) -> Iterator[Any]:
    """A file of an archive, to be read from its start. Raises StorageError."""
    with opened(member.archive) as file, contextlib.ExitStack() as stack:
        if is_zip(member.archive):
            zipped = stack.enter_context(zipfile.ZipFile(file))
            found = next((one for one in zipped.infolist() if _plain(one.filename) == member.name), None)
            if found and found.file_size > BOMB_BYTES and found.file_size > BOMB_RATIO * found.compress_size:
                raise StorageError(
                    f"{member.archive}: {member.name} unpacks from {found.compress_size} to {found.file_size} bytes, "
                    "as an archive does that is made to fill memory; unpack it yourself if it is meant"
                )
            inside: Any = zipped.open(found) if found else None
        else:
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r|*"))
            inside = next(
                (tar.extractfile(one) for one in tar if one.isfile() and _plain(one.name) == member.name), None
            )
        if inside is None:
            raise NotFound(f"{member.archive}: it has no file {member.name}")
        yield stack.enter_context(inside)


def fetch_members(
    members: dict[int, Member], max_bytes: int, versions: dict[str, str], *, group_bytes: int
) -> Iterator[dict[int, bytes | ImageError]]:
    """The bytes of files of archives, by the caller's key; an archive is read from its front to its end.

    Args:
        max_bytes: of a file; of a larger one the first ``max_bytes + 1`` are returned, however far it would unpack.
        versions: what identifies each archive's content now.
        group_bytes: of files that are in memory together, about.
    """
    by_archive: dict[str, dict[int, Member]] = {}
    for key, member in members.items():
        by_archive.setdefault(member.archive, {})[key] = member
    for archive, wanted in by_archive.items():
        open_, group, size = dict(wanted), dict[int, bytes | ImageError](), 0
        try:
            for key, data in _found(archive, wanted, max_bytes, versions[archive]):
                del open_[key]
                group[key] = data
                size += len(data) if isinstance(data, bytes) else 0
                if size > group_bytes:
                    yield group
                    group, size = {}, 0
        except StorageError as error:
            failed = image_error(error, archive)
            group |= dict.fromkeys(open_, failed)
            open_ = {}
        group |= {key: ImageError("not_found", f"{archive}: it has no file {one.name}") for key, one in open_.items()}
        yield group


def _found(
    archive: str, wanted: dict[int, Member], max_bytes: int, version: str
) -> Iterator[tuple[int, bytes | ImageError]]:
    if is_zip(archive):
        yield from _from_zip(_kept_zip(archive, version) if version else _open_zip(archive), wanted, max_bytes)
        return
    with opened(archive) as file:
        if is_plain_tar(archive):
            yield from _from_tar(file, _placed(wanted, archive, version), max_bytes)
        else:
            yield from _from_stream(file, wanted, max_bytes)


class _Zip(NamedTuple):
    """An open ZIP archive, its files by name (the first of several with one name), and what it is read through, which
    is closed when nobody refers to it."""

    zipped: zipfile.ZipFile
    by_name: dict[str, zipfile.ZipInfo]
    files: contextlib.ExitStack


def _kept_zip(archive: str, version: str) -> _Zip:
    """An archive that stays open in this thread, since reading its list of files takes long where there are many.

    Raises StorageError.
    """
    kept: collections.OrderedDict[str, _Zip] = _of_thread.__dict__.setdefault("zips", collections.OrderedDict())
    key = f"{archive} {version}"
    if key not in kept:
        found = _open_zip(archive)
        while len(kept) >= KEPT_ZIPS:
            kept.popitem(last=False)
        kept[key] = found
    kept.move_to_end(key)
    return kept[key]


def _open_zip(archive: str) -> _Zip:
    with contextlib.ExitStack() as files:
        zipped = files.enter_context(zipfile.ZipFile(files.enter_context(opened(archive))))
        by_name = {_plain(one.filename): one for one in reversed(zipped.infolist())}
        return _Zip(zipped, by_name, files.pop_all())


def _from_zip(kept: _Zip, wanted: dict[int, Member], max_bytes: int) -> Iterator[tuple[int, bytes | ImageError]]:
    there = [(kept.by_name[member.name], key, member) for key, member in wanted.items() if member.name in kept.by_name]
    for found, key, member in sorted(there, key=lambda one: one[0].header_offset):
        try:
            yield key, _read_first(kept.zipped.open, found, max_bytes + 1)
        except BROKEN as error:
            yield key, image_error(error, f"{member.archive}!/{member.name}")


def _placed(wanted: dict[int, Member], archive: str, version: str) -> dict[int, Entry]:
    """Where the files begin: their addresses say so, or the archive's index."""
    placed = {key: Entry(one.size, one.offset) for key, one in wanted.items() if one.offset >= 0}
    if len(placed) < len(wanted):
        index = read_index(archive, version)
        placed |= {key: index[one.name] for key, one in wanted.items() if key not in placed and one.name in index}
    return placed


def _from_tar(file: Any, placed: dict[int, Entry], max_bytes: int) -> Iterator[tuple[int, bytes | ImageError]]:
    """Neighbours are read together."""
    sizes = {key: min(one.size, max_bytes + 1) for key, one in placed.items()}
    together: list[tuple[int, int]] = []
    end = 0
    for key, one in [*sorted(placed.items(), key=lambda item: item[1].offset), (-1, Entry(0, 1 << 62))]:
        apart = one.offset - end > COALESCED_BYTES or (together and end - together[0][1] > RANGE_BYTES)
        if together and apart:
            first = together[0][1]
            file.seek(first)
            data = file.read(end - first)
            yield from ((k, data[offset - first : offset - first + sizes[k]]) for k, offset in together)
            together, data = [], b""
        if key >= 0:
            together.append((key, one.offset))
            end = one.offset + sizes[key]


def _from_stream(file: Any, wanted: dict[int, Member], max_bytes: int) -> Iterator[tuple[int, bytes | ImageError]]:
    """A compressed tar file can be read from its beginning alone."""
    keys: dict[str, list[int]] = {}
    for key, member in wanted.items():
        keys.setdefault(member.name, []).append(key)
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for one in tar:
            found = keys.pop(_plain(one.name), []) if one.isfile() else []
            if found:
                inside = tar.extractfile(one)
                data = inside.read(max_bytes + 1) if inside else b""
                yield from ((key, data) for key in found)
            tar.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen
            if not keys:
                break


def read_members(
    archive: str, wanted: Callable[[str], bool], *, max_bytes: int
) -> Iterator[tuple[str, Entry, bytes | None]]:
    """Name, place and, of those that are ``wanted``, the first ``max_bytes`` bytes of every file, in one reading.

    Raises:
        StorageError: it cannot be read, or is damaged.
    """
    with opened(archive) as file:
        for name, entry, read in _entries(archive, file):
            yield name, entry, read(max_bytes) if wanted(name) else None
