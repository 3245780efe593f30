"""Stores: read back by numpy, written twice without harm, evicted oldest first; identities tell contents apart."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pytest
import s3fs

from retailray import storage
from retailray.data import store
from retailray.data.store import StoreReader, StoreSpec
from retailray.errors import StorageError

CODES = pa.table({"error_code": [""] * 6, "message": [""] * 6})


def make(root, key="k1", dtype="float32"):
    return StoreSpec(str(root), key, num_rows=6, num_views=2, shape=(3, 2), dtype=dtype)


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
    assert np.array_equal(np.load(tmp_path / "k1/rows.npy"), values_of(spec))
    reader = StoreReader(spec, local_root=str(tmp_path), budget=10**9)
    assert isinstance(reader.rows, np.memmap)
    rows, views = np.array([5, 0, 5]), np.array([1, 0, 0])
    assert np.array_equal(reader.take(rows, views), values_of(spec)[[11, 0, 10]])
    assert store.read_codes(spec).num_rows == 6
    assert json.loads((tmp_path / "k1/store.json").read_text())["num_bytes"] == 12 * 6 * 4


def test_rows_with_gaps_go_where_they_belong(tmp_path):
    spec = make(tmp_path)
    store.create(spec)
    positions = np.array([0, 1, 4, 5, 11])
    store.write_rows(spec, positions, values_of(spec)[positions])
    found = np.load(tmp_path / "k1/rows.npy")
    assert np.array_equal(found[positions], values_of(spec)[positions])
    assert not found[[2, 3, 6, 10]].any()


@pytest.mark.s3
def test_a_remote_store_is_assembled_once_a_machine(bucket, tmp_path):
    spec = make(f"{bucket}/cache", dtype="bfloat16")
    fill(spec)
    for _ in range(2):
        reader = StoreReader(spec, local_root=str(tmp_path), budget=10**9)
        assert np.array_equal(reader.take(np.arange(6), np.zeros(6, int)), values_of(spec)[::2])
    s3fs.S3FileSystem(use_listings_cache=False).rm(f"{bucket}/cache/k1/parts".removeprefix("s3://"), recursive=True)
    again = StoreReader(spec, local_root=str(tmp_path), budget=10**9)
    assert np.array_equal(again.rows, reader.rows)


def test_the_least_recently_used_store_goes_first(tmp_path):
    size = make(tmp_path).num_bytes
    for age, key in enumerate(["new", "middle", "old"]):
        fill(make(tmp_path, key))
        (tmp_path / key / "USED").write_text(str(time.time() - store.IN_USE_S * (age + 1) * 2))
    held = sum(info["size"] for info in storage.list_files(str(tmp_path)).values())
    assert store.make_room(str(tmp_path), size, held + size, keep=set()) == []
    assert store.make_room(str(tmp_path), size, held + size // 2, keep=set()) == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["middle", "new"]
    with pytest.raises(StorageError, match="in use"):
        store.make_room(str(tmp_path), size, size, keep={"new", "middle"})
    (tmp_path / "middle/USED").write_text(str(time.time()))
    with pytest.raises(StorageError, match="in use"):
        store.make_room(str(tmp_path), size, 1, keep={"new"})
    assert sorted(os.listdir(tmp_path)) == ["middle", "new"]


def test_a_disk_that_is_too_small_is_an_error_before_work(tmp_path):
    spec = StoreSpec(str(tmp_path), "k", 10**9, 1, (10**6,), "float32")
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
