"""How much of what a catalog names is read, and where links may lead."""

import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import s3fs

from retailray import storage
from retailray.errors import ImageError
from retailray.storage import archives, fetching


def codes(found):
    return [one.code if isinstance(one, ImageError) else len(one) for one in found]


@pytest.mark.s3
def test_what_is_too_large_is_not_read_to_its_end(tmp_path, bucket, monkeypatch):
    """Kind of fault: one large object takes a task's memory, or its time."""
    fs = s3fs.S3FileSystem()
    sizes = {"empty": 0, "small": 10, "first": 1 << 20, "more": (1 << 20) + 1, "limit": 3_000_000, "over": 3_000_001}
    names = []
    for name, size in sizes.items():
        fs.pipe_file(f"{bucket}/{name}", bytes(size))
        (tmp_path / name).write_bytes(bytes(size))
        names += [f"{bucket}/{name}", str(tmp_path / name)]
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(6 << 30)
    names += [str(tmp_path / "sparse.png"), f"{bucket}/none"]
    read = []
    inner = fetching._fetch

    def noted(addresses, access, up_to):
        found = inner(addresses, access, up_to)
        read.append(sum(len(data) for data in found.values() if isinstance(data, bytes)))
        return found

    monkeypatch.setattr(fetching, "_fetch", noted)
    found = storage.fetch_many(names, storage.Access(max_bytes=3_000_000))
    expected = [size if size <= 3_000_000 else "too_many_bytes" for size in sizes.values() for _ in range(2)]
    assert codes(found) == [*expected, "too_many_bytes", "not_found"]
    assert "catalog.max_bytes = 3000000" in found[-2].message
    assert sum(read) < 4 * sum(sizes.values())


@pytest.mark.s3
def test_what_is_in_memory_together_is_bounded(bucket, monkeypatch):
    """Kind of fault: a thousand images of 20 MB are read at once."""
    monkeypatch.setattr(fetching, "GROUP_BYTES", 10 << 20)
    fs = s3fs.S3FileSystem()
    for number in range(20):
        fs.pipe_file(f"{bucket}/{number}", bytes([number]) * (3 << 20))
    addresses = [f"{bucket}/{number}" for number in range(20)]
    told = dict.fromkeys(range(10), 3 << 20)  # a listing knew half of them
    seen = {}
    for group in storage.fetch_groups(addresses, sizes=told):
        assert sum(len(data) for data in group.values()) <= 10 << 20
        seen |= {at: data[0] for at, data in group.items()}
    assert seen == {number: number for number in range(20)}
    [only] = storage.fetch_groups(addresses[:1], storage.Access(max_bytes=1000), sizes={0: 3 << 20})
    assert codes(only.values()) == ["too_many_bytes"]


def test_every_address_comes_once_whatever_it_is(tmp_path):
    for number in range(150):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    addresses = [str(tmp_path / f"{number % 150}.png") for number in range(200)] + [str(tmp_path / "none"), "x://y"]
    seen = [at for group in storage.fetch_groups(addresses) for at in group]
    assert sorted(seen) == list(range(202))
    assert sorted(at for at, _ in storage.fetch_in_turn(addresses)) == list(range(202))


def test_links_do_not_lead_out_of_a_folder(tmp_path):
    """Kind of fault: who may write into a folder of pictures lets others read any file of the machine."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "sub/1.png").write_bytes(b"1")
    os.symlink(outside / "secret", root / "file.png")
    os.symlink(outside, root / "folder")
    os.symlink(root / "sub/1.png", root / "inside.png")
    names = [str(root / name) for name in ("file.png", "folder/secret", "inside.png", "sub/1.png")]
    found = storage.fetch_many(names, storage.Access(allowed=(str(root),)))
    assert codes(found) == ["not_allowed", "not_allowed", 1, 1]
    assert str(outside) in found[0].message
    assert "catalog.allow" in found[0].message
    assert codes(storage.fetch_many(names, storage.Access(allowed=(str(root), str(outside))))) == [6, 6, 1, 1]


@pytest.mark.parametrize(
    "address",
    ["generic://file:///etc/hostname", "zip://x::file:///etc/hostname", "simplecache::file:///etc/hostname",
     "dir:///etc/hostname", "blockcache:///etc/hostname", "github://a:b@/c", "data:text/plain,x://y", "reference://x"],
)  # fmt: skip
def test_what_reads_through_other_filesystems_is_no_store(address):
    """Kind of fault: an address of a catalog reaches a file of the machine through another protocol."""
    [found] = storage.fetch_many([address])
    assert found.code in ("bad_address", "not_found")


@pytest.mark.parametrize(
    ("address", "folder", "below"),
    [("/shop/a.png", "/shop", True), ("/shopping/a.png", "/shop", False), ("s3://b/img-private/x", "s3://b/img", False),
     ("s3://b/img/x", "s3://b/img/", True), ("https://a.com.evil.org/x", "https://a.com", False)],
)  # fmt: skip
def test_prefixes_end_at_a_separator(address, folder, below):
    assert storage.is_below(address, folder) is below


def test_fetching_leaves_no_thread(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    storage.fetch_many([str(tmp_path / "a")])
    before = set(threading.enumerate())
    storage.fetch_many([str(tmp_path / "a"), "http://10.0.0.1/x"])
    assert not [thread for thread in set(threading.enumerate()) - before if not thread.daemon]


def test_small_files_of_this_machine_take_the_memory_of_small_files(tmp_path):
    """Kind of fault: a file object takes memory for all that it is asked for, so the limit is taken for every file."""
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * 1000)
    addresses = [str(tmp_path / f"{number}.jpg") for number in range(20)]
    storage.fetch_many(addresses)
    tracemalloc.start()
    try:
        assert storage.fetch_many(addresses) == [b"x" * 1000] * 20
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_zip_archive_that_is_written_anew_is_read_anew(tmp_path, monkeypatch):
    """It stays open between two groups of pictures, and must not stay what it was."""
    opened = []
    keep = archives.zipfile.ZipFile
    monkeypatch.setattr(archives.zipfile, "ZipFile", lambda file: opened.append(1) or keep(file))

    def write(data):
        with keep(tmp_path / "shop.zip", "w") as zipped:
            for number in range(200):
                zipped.writestr(f"{number}.jpg", data + b"%d" % number)

    names = [f"{tmp_path}/shop.zip!/{number}.jpg" for number in range(200)]
    for data in (b"first ", b"second "):
        write(data)
        found = [storage.fetch_many(names[start : start + 50]) for start in range(0, 200, 50)]
        assert [one for part in found for one in part] == [data + b"%d" % number for number in range(200)]
    assert len(opened) == 2, "once a content"
    (tmp_path / "shop.zip").write_bytes(b"PK\x03\x04 and no more")
    [failed] = storage.fetch_many(names[:1])
    assert (failed.code, "damaged" in str(failed)) == ("fetch_failed", True)


def test_threads_read_many_zip_archives_at_once(tmp_path):
    """Kind of fault: an archive is closed by one thread while another reads it."""
    names = []
    for archive in range(8):
        with archives.zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as zipped:
            for number in range(50):
                zipped.writestr(f"{number}.jpg", f"{archive} {number}")
                names.append(f"{tmp_path}/{archive}.zip!/{number}.jpg")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda turn: storage.fetch_many(names[turn:] + names[:turn]), range(0, 400, 25)):
            assert not [one for one in found if isinstance(one, ImageError)]
