"""A cache of one row per image and view, under a content key: activations of frozen blocks, or decoded pixels.

A cache entry (store) is a folder ``<root>/<key>``: ``rows.npy`` of shape ``(num_rows * num_views, *shape)``, written in
place on a local disk and as parts on an object store; ``rows.parquet`` with the error code of every row; and
``store.json``, written last: an entry that has it is complete. The key is a digest of all that the numbers depend on,
so an entry is never stale; it is absent, complete, or filled again after transient fetch errors. Readers memory-map
``rows.npy``; a remote entry is first copied to the disk of the machine, once per fill.
"""

import dataclasses
import fcntl
import functools
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retailray import storage
from retailray.data.arrow_tables import parquet_bytes
from retailray.errors import StorageError

META, ROWS, CODES, USED = "store.json", "rows.npy", "rows.parquet", "USED"
IN_USE_S = 3600.0  # a store used this recently is not evicted: a run may be about to map it
FORMAT = 1  # of what this module writes
PROBE_BYTES = 8 << 20
RETRIED_NEXT_RUN = {"timeout", "fetch_failed", "access_denied"}
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """Where a cache entry is, and its shape. ``dtype``: numpy's name, or bfloat16 (stored as uint16)."""

    root: str
    key: str
    num_rows: int
    num_views: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def address(self) -> str:
        return storage.join(self.root, self.key)

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.numpy_dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.row_bytes * self.num_rows * self.num_views


def content_key(content: dict[str, object]) -> str:
    """A digest of everything a store's numbers depend on."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_whole(spec: CacheSpec) -> bool:
    """Whether all of a store is there, and is complete, without transient errors."""
    address = storage.join(spec.address, META)
    return storage.exists(address) and bool(json.loads(storage.read_bytes(address))["settled"])


def create(spec: CacheSpec) -> None:
    """Reserve the space of a local store. Raises StorageError where the disk has too little."""
    touch(spec)
    if not storage.is_local(spec.address):
        return
    try:
        os.makedirs(spec.address, exist_ok=True)
        path = os.path.join(spec.address, ROWS)
        _allocate(spec, path)
    except OSError as error:
        raise StorageError(f"{spec.address}: {spec.num_bytes / 1e9:.1f} GB cannot be reserved ({error})") from error


def _allocate(spec: CacheSpec, path: str) -> None:
    shape = (spec.num_rows * spec.num_views, *spec.shape)
    # never truncated: another run with the same key writes the same numbers to the same places
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        header = {"descr": spec.numpy_dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        if spec.num_bytes:
            os.posix_fallocate(file.fileno(), start, spec.num_bytes)  # a memory map of a full disk would kill us


def write_rows(spec: CacheSpec, positions: np.ndarray, values: np.ndarray) -> None:
    """Write ``values`` ``(n, *shape)`` at ascending ``positions`` (row * num_views + view); repeating is harmless."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    for run, part in zip(np.split(positions, breaks), np.split(values, breaks), strict=True):
        if not len(run):
            continue
        if storage.is_local(spec.address):
            _write_at(os.path.join(spec.address, ROWS), spec, int(run[0]), part)
        else:
            buffer = io.BytesIO()
            np.save(buffer, part)
            storage.write_bytes(storage.join(spec.address, f"parts/{run[0]:015d}.npy"), buffer.getvalue())


def _write_at(path: str, spec: CacheSpec, position: int, values: np.ndarray) -> None:
    with open(path, "r+b") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0), version
        np.lib.format.read_array_header_1_0(file)
        file.seek(file.tell() + position * spec.row_bytes)
        file.write(np.ascontiguousarray(values).data)


def finish(spec: CacheSpec, codes: pa.Table) -> None:
    """``codes``: one row per image in order, ``error_code`` and ``message``. From here on the store exists.

    A cache with transient failures (:data:`RETRIED_NEXT_RUN`) serves this run only; the next run fills it again.
    """
    settled = not RETRIED_NEXT_RUN & set(codes.column("error_code").to_pylist())
    storage.write_bytes(storage.join(spec.address, CODES), parquet_bytes(codes))
    touch(spec)
    of_this_fill = {"num_bytes": spec.num_bytes, "settled": settled, "fill": secrets.token_hex(8)}
    meta = json.dumps(dataclasses.asdict(spec) | of_this_fill, indent=2)
    storage.write_bytes(storage.join(spec.address, META), meta.encode())


def touch(spec: CacheSpec) -> None:
    """Note that a store is in use, for those who look for something to evict."""
    storage.write_bytes(storage.join(spec.address, USED), str(time.time()).encode())


def read_codes(spec: CacheSpec) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(spec.address, CODES))))


def copies_root() -> str:
    """Where this machine assembles its copies of remote stores."""
    return os.path.join(storage.cache_folder(), "assembled")


def held(root: str) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes and time of last use of every store below a root, by key; whatever else lies there is none of ours."""
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for name, info in (storage.list_files(root) if storage.exists(root) else {}).items():
        key = name[len(root) :].strip("/").split("/")[0]
        if _KEY.fullmatch(key):
            sizes[key] = sizes.get(key, 0) + int(info["size"] or 0)
            used[key] = max(used.get(key, 0.0), _changed_at(info))
    return sizes, used


def _changed_at(info: dict[str, Any]) -> float:
    """When a listed file was written: every use writes one, and so does every row of a fill."""
    when = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("updated") or 0.0
    return when.timestamp() if hasattr(when, "timestamp") else float(when)


def make_room(root: str, needed: int, budget: int, *, keep: set[str], writing: set[str]) -> list[str]:
    """Evict the least recently used stores until ``needed`` more bytes fit ``budget``; those in use and ``keep`` stay.

    ``writing``: the stores that the bytes are needed for; what an earlier try left of them counts once.

    Returns:
        The keys that were evicted.

    Raises:
        StorageError: what may not be evicted leaves too little room.
    """
    sizes, used = held(root)
    sizes = {key: size for key, size in sizes.items() if key not in writing}
    evicted = []
    for key in sorted(set(sizes) - keep, key=lambda key: used[key]):
        if sum(sizes.values()) + needed <= budget:
            break
        if time.time() - used[key] < IN_USE_S:
            continue
        # the mark goes first, so that nobody takes half a store for a whole one
        storage.remove_file(storage.join(root, key, META))
        storage.remove_folder(storage.join(root, key))
        evicted.append(key)
        del sizes[key]
    if sum(sizes.values()) + needed > budget:
        in_use = sum(sizes.values()) / 1e9
        raise StorageError(
            f"{root}: {in_use:.2f} GB are in use; {needed / 1e9:.2f} GB more exceed {budget / 1e9:.2f} GB"
        )
    return evicted


class CacheReader:
    """Memory-mapped rows, read-only. A remote store is assembled in :func:`copies_root`, once a machine."""

    def __init__(self, spec: CacheSpec, *, budget: int) -> None:
        self.spec = spec
        local = storage.is_local(spec.address)
        path = os.path.join(spec.address, ROWS) if local else _assemble(spec, budget)
        self.rows = np.load(path, mmap_mode="r")

    def take(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """A copy of the numbers of ``rows`` ``(B,)`` in ``views`` ``(B,)``: ``(B, *shape)``."""
        return self.rows[rows * self.spec.num_views + views]


def _assemble(spec: CacheSpec, budget: int) -> str:
    here = dataclasses.replace(spec, root=copies_root())
    meta = storage.join(spec.address, META)
    if not storage.exists(meta):
        raise StorageError(f"{spec.address}: it was evicted meanwhile; run again")
    fill = json.loads(storage.read_bytes(meta)).get("fill", "")
    path = os.path.join(here.address, f"{fill}.{ROWS}")
    os.makedirs(here.address, exist_ok=True)
    with open(os.path.join(here.address, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one machine: the first one fetches
        touch(here)
        if os.path.exists(path):
            return path
        for other in glob.glob(os.path.join(glob.escape(here.address), f"*{ROWS}*")):
            os.unlink(other)  # of an earlier fill, or half of this one; who has mapped it keeps it
        make_room(here.root, spec.num_bytes, budget, keep=set(), writing={spec.key})
        partial = f"{path}.partial"
        try:
            _allocate(spec, partial)
        except OSError as error:
            raise StorageError(
                f"{here.address}: {spec.num_bytes / 1e9:.1f} GB for a copy of {spec.address} cannot be reserved "
                f"({error}); lower train.num_views or train.cache_gb, or set XDG_CACHE_HOME to a larger disk"
            ) from error
        copied = np.zeros(spec.num_rows * spec.num_views, dtype=bool)
        parts = storage.list_files(storage.join(spec.address, "parts"))
        for name in sorted(parts, key=lambda name: (_changed_at(parts[name]), name)):  # the last fill has the last word
            part = np.load(io.BytesIO(storage.read_bytes(name)))
            first = int(os.path.basename(name).split(".")[0])
            _write_at(partial, spec, first, part)
            copied[first : first + len(part)] = True
        if not copied.all() or not storage.exists(meta):
            raise StorageError(
                f"{spec.address}: {int((~copied).sum())} rows are gone: it was evicted meanwhile; run again"
            )
        os.replace(partial, path)
    return path


def free_bytes(root: str) -> int | None:
    """Free space on the disk of a local root, what stores hold there included; None for object stores."""
    if not storage.is_local(root):
        return None
    stores = sum(held(root)[0].values())
    while not os.path.exists(root):
        root = os.path.dirname(root)
    return shutil.disk_usage(root).free + stores


@functools.cache  # a search asks for every variant of its trials
def bytes_per_second(root: str) -> float:
    """At which an object store takes a file and gives it back, measured once with one of :data:`PROBE_BYTES`."""
    folder = storage.join(root, f"probe-{secrets.token_hex(8)}")
    address, data = storage.join(folder, "bytes"), os.urandom(PROBE_BYTES)
    started = time.monotonic()
    try:
        storage.write_bytes(address, data)
        storage.read_bytes(address)
        return 2 * PROBE_BYTES / (time.monotonic() - started)
    finally:
        storage.remove_folder(folder)


def is_writable(root: str) -> bool:
    """Whether this machine lets a local folder be made and written."""
    try:
        os.makedirs(root, exist_ok=True)
    except OSError:
        return False
    return os.access(root, os.W_OK)
