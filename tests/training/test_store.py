"""Stores: read back by numpy, written twice without harm, evicted oldest first; identities tell contents apart."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pytest
import s3fs

from retailray import storage
from retailray.errors import StorageError
from retailray.training.cache import store
from retailray.training.cache.store import CacheReader, CacheSpec

KEYS = [digit * 32 for digit in "0123"]
CODES = pa.table({"error_code": [""] * 6, "message": [""] * 6})


def make(root, key=KEYS[0], dtype="float32"):
    return CacheSpec(str(root), key, num_rows=6, num_views=2, shape=(3, 2), dtype=dtype)


def values_of(spec):
    return np.arange(12 * 6).reshape(12, 3, 2).astype(spec.numpy_dtype)


def fill(spec):
    store.create(spec)
    values = values_of(spec)
    for start in (8, 0, 4, 4):  # in any order, and one part twice
        store.write_rows(spec, np.arange(start, start + 4), values[start : start + 4])
    assert not store.is_whole(spec)
    store.finish(spec, CODES)


def test_numpy_reads_what_was_written(tmp_path):
    spec = make(tmp_path)
    fill(spec)
    assert store.is_whole(spec)
    assert np.array_equal(np.load(tmp_path / KEYS[0] / "rows.npy"), values_of(spec))
    reader = CacheReader(spec, budget=10**9)
    assert isinstance(reader.rows, np.memmap)
    rows, views = np.array([5, 0, 5]), np.array([1, 0, 0])
    assert np.array_equal(reader.take(rows, views), values_of(spec)[[11, 0, 10]])
    assert store.read_codes(spec).num_rows == 6
    assert json.loads((tmp_path / KEYS[0] / "store.json").read_text())["num_bytes"] == 12 * 6 * 4


def test_rows_with_gaps_go_where_they_belong(tmp_path):
    spec = make(tmp_path)
    store.create(spec)
    positions = np.array([0, 1, 4, 5, 11])
    store.write_rows(spec, positions, values_of(spec)[positions])
    found = np.load(tmp_path / KEYS[0] / "rows.npy")
    assert np.array_equal(found[positions], values_of(spec)[positions])
    assert not found[[2, 3, 6, 10]].any()


@pytest.mark.s3
def test_a_remote_store_is_assembled_once_a_machine(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fill(make(tmp_path / "retailray", dtype="bfloat16"))  # the same key kept here by another run is another matter
    spec = make(f"{bucket}/cache", dtype="bfloat16")
    fill(spec)
    for _ in range(2):
        reader = CacheReader(spec, budget=10**9)
        assert np.array_equal(reader.take(np.arange(6), np.zeros(6, int)), values_of(spec)[::2])
    s3fs.S3FileSystem(use_listings_cache=False).rm(
        f"{bucket}/cache/{KEYS[0]}/parts".removeprefix("s3://"), recursive=True
    )
    again = CacheReader(spec, budget=10**9)
    assert np.array_equal(again.rows, reader.rows)


def age(folder, seconds):
    for path in folder.iterdir():
        if path.name == "USED":
            path.write_text(str(time.time() - seconds))
        os.utime(path, (time.time() - seconds,) * 2)


def test_the_least_recently_used_store_goes_first_and_nothing_else_does(tmp_path):
    root, size = str(tmp_path), make(tmp_path).num_bytes
    new, middle, old = KEYS[:3]
    for rank, key in enumerate((new, middle, old)):
        fill(make(tmp_path, key))
        age(tmp_path / key, store.IN_USE_S * (rank + 1) * 2)
    (tmp_path / "my-photos").mkdir()
    (tmp_path / "my-photos/a.jpg").write_bytes(b"x" * 10_000)
    held = sum(store.held(root)[0].values())
    assert store.make_room(root, size, held + size, keep=set(), writing=set()) == []
    assert store.make_room(root, size, held + size // 2, keep=set(), writing=set()) == [old]
    assert store.make_room(root, size, 2 * held, keep=set(), writing={new}) == [], "what is written anew counts once"
    with pytest.raises(StorageError, match="in use"):
        store.make_room(root, size, size, keep={new, middle}, writing=set())
    age(tmp_path / middle, 0)
    with pytest.raises(StorageError, match="in use"):
        store.make_room(root, size, 1, keep={new}, writing=set())
    assert sorted(os.listdir(tmp_path)) == [new, middle, "my-photos"]


def test_a_second_run_does_not_take_from_the_first(tmp_path):
    spec = make(tmp_path)
    store.create(spec)
    store.write_rows(spec, np.arange(6), values_of(spec)[:6])
    store.create(spec)  # by another run with the same key
    store.write_rows(spec, np.arange(6, 12), values_of(spec)[6:])
    assert np.array_equal(np.load(tmp_path / KEYS[0] / "rows.npy"), values_of(spec))


def test_failures_that_may_heal_are_for_one_run(tmp_path):
    spec = make(tmp_path)
    store.create(spec)
    store.finish(spec, CODES.set_column(0, "error_code", pa.array(["timeout"] + [""] * 5)))
    assert not store.is_whole(spec)
    store.finish(spec, CODES.set_column(0, "error_code", pa.array(["corrupt"] + [""] * 5)))
    assert store.is_whole(spec)


@pytest.mark.s3
def test_a_remote_store_that_was_filled_again_is_read_anew(bucket, tmp_path, monkeypatch):
    """An image timed out and was black; the next run could read it, and divides the rows in other parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = make(f"{bucket}/cache")
    store.create(spec)
    values = values_of(spec)
    black = values.copy()
    black[4:6] = 0
    for rows in (np.arange(3), np.arange(3, 12)):
        store.write_rows(spec, rows, black[rows])
    store.finish(spec, CODES.set_column(0, "error_code", pa.array(["", "", "timeout", "", "", ""])))
    assert np.array_equal(CacheReader(spec, budget=10**9).rows, black)
    time.sleep(1.1)  # object stores tell times in seconds
    store.create(spec)
    store.write_rows(spec, np.arange(12), values)
    store.finish(spec, CODES)
    assert np.array_equal(CacheReader(spec, budget=10**9).rows, values)
    assert len(list(tmp_path.glob("**/*rows.npy*"))) == 1


@pytest.mark.s3
def test_half_a_remote_store_is_an_error(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = make(f"{bucket}/cache")
    store.create(spec)
    store.write_rows(spec, np.arange(4), values_of(spec)[:4])
    store.finish(spec, CODES)
    with pytest.raises(StorageError, match="8 rows are gone"):
        CacheReader(spec, budget=10**9)


def test_a_disk_that_is_too_small_is_an_error_before_work(tmp_path):
    spec = CacheSpec(str(tmp_path), "k", 10**9, 1, (10**6,), "float32")
    with pytest.raises(StorageError, match="cannot be reserved"):
        store.create(spec)


def test_local_identities_see_what_size_and_time_hide(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    before = storage.identities([str(path), str(tmp_path / "none.jpg"), ""])
    assert storage.identities([str(path), str(tmp_path / "none.jpg"), ""]) == before
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert storage.identities([str(path)]) != before[:1]
    (tmp_path / "none.jpg").write_bytes(b"x")
    assert storage.identities([str(tmp_path / "none.jpg")]) != before[1:2]


@pytest.mark.s3
@pytest.mark.parametrize("count", [2, 12])
def test_object_identities_come_from_the_store(bucket, count):
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    names = [f"{bucket}/i/{number} [x].jpg" for number in range(count)]
    for name in names[1:]:
        fs.pipe_file(name.removeprefix("s3://"), b"one")
    before = storage.identities(names)
    assert before[0] == "absent"
    assert all(before[1:])
    fs.pipe_file(names[1].removeprefix("s3://"), b"two")
    after = storage.identities(names)
    assert after[1] != before[1]
    assert after[2:] == before[2:]
