import os
import subprocess
import sys

import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from retailray import storage
from retailray.errors import ImageError, StorageError
from retailray.storage.access import is_public
from retailray.storage.failures import asks_for_time, is_transient
from retailray.storage.opening import store_of
from tests.conftest import start_proxy


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://b/k", "a.jpg"), "s3://b/k/a.jpg"),
        (("s3://b/k", "./x/../a.jpg"), "s3://b/k/a.jpg"),
        (("/root", "../a.jpg"), "/a.jpg"),
        (("/root", "/abs.jpg"), "/abs.jpg"),
        (("s3://b/k", "gs://c/d"), "gs://c/d"),
        (("/root", "a b/ü.jpg"), "/root/a b/ü.jpg"),
        (("s3://b/k", "/root/../etc/x"), "/etc/x"),
        (("s3://b/k", "local:///root/../etc/x"), "/etc/x"),
        (("/root", "s3://b/../c/x"), "s3://c/x"),
        (("/root", "s3://b//two.jpg"), "s3://b//two.jpg"),
        (("s3://b/k", "a//two.jpg"), "s3://b/k/a//two.jpg"),
        (("s3://b/k", "a//../two.jpg"), "s3://b/k/a/two.jpg"),
        (("/root", "file:/x/a b.jpg"), "/x/a b.jpg"),
        (("/root", "file://localhost/x/a%20b.jpg"), "/x/a b.jpg"),
        (("/root", "FILE:///x/a.jpg"), "/x/a.jpg"),
        (("/root", "file://other/x.jpg"), "file://other/x.jpg"),
        (("s3://b/k", "local://local://local:///etc/x"), "/etc/x"),
        (("s3://b/k", "local://file:///etc/x"), "/etc/x"),
    ],
)
def test_join(parts, joined):
    assert storage.join(*parts) == joined


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_two_colons_are_part_of_a_name(place, tmp_path, request):
    address = f"{tmp_path if place == 'local' else request.getfixturevalue('bucket')}/a::b.jpg"
    storage.write_bytes(address, b"both")
    storage.write_bytes(address.partition("::")[0], b"another")
    assert storage.read_bytes(address) == storage.fetch_many([address])[0] == b"both"


@pytest.mark.parametrize(
    ("host", "public"),
    [("8.8.8.8", True), ("::ffff:8.8.8.8", True), ("[2001:4860:4860::8888]", True), ("shop.example.com", True),
     ("127.0.0.1", False), ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False), ("[::1]", False),
     ("10.0.0.1", False),
     ("169.254.169.254", False), ("fe80::1%eth0", False), ("224.0.0.1", False), ("localhost.", False)],
)  # fmt: skip
def test_public_hosts_are_told_from_private_ones(host, public):
    """An IPv4 address in IPv6 form is what the IPv4 address is."""
    assert is_public(host) is public


def test_normalize_means_the_same_everywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.normalize("a/../b") == str(tmp_path / "b")
    assert storage.normalize("s3://b/k/") == "s3://b/k"
    assert storage.normalize("file:///x/y") == "/x/y"


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_pointer_moves_only_from_where_it_was_seen(place, tmp_path, request):
    pointer = f"{tmp_path if place == 'local' else request.getfixturevalue('bucket')}/LATEST"
    assert storage.compare_and_swap(pointer, b"one", before=None)
    assert not storage.compare_and_swap(pointer, b"two", before=None), "somebody was first"
    assert not storage.compare_and_swap(pointer, b"two", before=b"zero")
    assert storage.compare_and_swap(pointer, b"two", before=b"one")
    assert storage.read_bytes(pointer) == b"two"


@pytest.mark.parametrize(
    ("status", "throttled"), [(429, True), (500, True), (503, True), (404, False), (403, False), (None, False)]
)
def test_answers_of_a_throttling_store_are_recognised(status, throttled):
    """Kind of fault: a store that is asked to wait for is given up like one that is broken."""
    error = OSError("of the client")
    error.__cause__ = botocore.exceptions.ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
    assert asks_for_time(error) is throttled


@pytest.mark.parametrize(
    ("status", "transient"),
    [(408, True), (429, True), (500, True), (503, True), (404, False), (403, False), (None, True)],
)
def test_answers_that_are_worth_another_try(status, transient):
    """Kind of fault: an answer of the store that may change is taken for the last word, or the other way round."""
    error = botocore.exceptions.ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")
    assert is_transient(error) is transient
    assert not is_transient(FileNotFoundError("gone"))


def test_a_creation_whose_answer_was_lost_is_ours(bucket):
    """The client puts again, and is refused by what it has put."""
    assert storage.put_if_absent(f"{bucket}/claim", b"ours")
    assert storage.put_if_absent(f"{bucket}/claim", b"ours")
    assert not storage.put_if_absent(f"{bucket}/claim", b"theirs")


def test_of_two_that_saw_the_same_pointer_one_moves_it(bucket, monkeypatch):
    """The other's put comes between our look and our put."""
    pointer = f"{bucket}/LATEST"
    storage.write_bytes(pointer, b"one")
    store, path = store_of(pointer)
    fs = store.fs
    look = fs.cat_file

    def then_theirs(*arguments, **options):
        found = look(*arguments, **options)
        monkeypatch.undo()
        s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(path, b"theirs")
        return found

    monkeypatch.setattr(fs, "cat_file", then_theirs)
    assert not storage.compare_and_swap(pointer, b"ours", before=b"one")
    assert storage.read_bytes(pointer) == b"theirs"


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_write_read_list(place, tmp_path, request):
    root = str(tmp_path) if place == "local" else request.getfixturevalue("bucket")
    for name in ("x/a b+ü%.bin", "x/deep/b.bin"):
        storage.write_bytes(f"{root}/{name}", name.encode())
        assert storage.read_bytes(f"{root}/{name}") == name.encode()
    storage.write_bytes(f"{root}/x/deep/b.bin", b"new")
    assert {name: info["size"] for name, info in storage.list_files(f"{root}/x").items()} == {
        f"{root}/x/a b+ü%.bin": len("x/a b+ü%.bin".encode()),
        f"{root}/x/deep/b.bin": 3,
    }
    assert storage.exists(f"{root}/x/deep/b.bin")
    storage.remove_folder(f"{root}/x")
    assert not storage.exists(f"{root}/x/deep/b.bin")
    with pytest.raises(StorageError, match="not found"):
        storage.read_bytes(f"{root}/x/deep/b.bin")


def test_local_writes_leave_no_partial_file(tmp_path):
    target = tmp_path / "a"
    storage.write_bytes(str(target), b"old")
    os.chmod(target, 0o400)
    storage.write_bytes(str(target), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_bytes() == b"new"


def test_fetch_many_keeps_order_and_says_why_not(tmp_path, bucket):
    (tmp_path / "a.bin").write_bytes(b"A")
    s3fs.S3FileSystem().pipe_file(f"{bucket}/b.bin", b"B")
    odd = "größe [1] 50% *#?&+;=.jpg"
    (tmp_path / odd).write_bytes(b"O")
    s3fs.S3FileSystem().pipe_file(f"{bucket}/{odd}", b"O")
    assert storage.fetch_many([f"{bucket}/{odd}", str(tmp_path / odd)]) == [b"O", b"O"]
    wanted = [
        f"{bucket}/b.bin",
        str(tmp_path / "a.bin"),
        f"{bucket}/nope.bin",
        str(tmp_path / "nope.bin"),
        str(tmp_path),
        f"{bucket}/b.bin",
        "gopher://x/y",
        "ftp://127.0.0.1:9/x.jpg",
        "zip://a.jpg",
        "s3://no-such-bucket/x",
        f"{tmp_path}/nul\0.jpg",
    ]
    found = storage.fetch_many(wanted)
    assert [item.code if isinstance(item, ImageError) else item for item in found] == [
        b"B",
        b"A",
        "not_found",
        "not_found",
        "not_found",
        b"B",
        "bad_address",
        "bad_address",
        "bad_address",
        "not_found",
        "bad_address",
    ]
    assert "nope.bin" in found[2].message


def test_an_image_in_a_parquet_file_is_read_anew_when_the_file_changed(tmp_path):
    """Kind of fault: another content at the same address is taken for the one that was read before."""
    path = str(tmp_path / "a.parquet")
    addresses = [storage.embedded_address(path, "img/main", row) for row in range(3)]
    for order in ([b"one", b"two"], [b"two", b"one"]):
        pq.write_table(pa.table({"img/main": order}), path)
        found = storage.fetch_many([*reversed(addresses[:2]), addresses[2]])
        assert found[:2] == order[::-1]
        assert found[2].code == "not_found"
    assert storage.fetch_many([storage.embedded_address(f"{path}x.parquet", "a", 0)])[0].code == "not_found"


def test_a_name_in_the_other_unicode_form_has_an_identity_that_changes(tmp_path):
    (tmp_path / "cafe\u0301.png").write_bytes(b"1")
    asked = str(tmp_path / "caf\u00e9.png")
    before = storage.identities([asked])
    assert storage.fetch_many([asked]) == [b"1"]
    (tmp_path / "cafe\u0301.png").write_bytes(b"22")
    assert storage.identities([asked]) != before
    assert "FileNotFoundError" not in before


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda file: storage.read_bytes(os.path.dirname(file)), "a folder, and a file is expected"),
        (lambda file: storage.read_bytes(f"{file}/x"), "a part of its path is a file, and a folder is expected"),
        (lambda file: storage.write_bytes(f"{file}/x", b""), "its folder cannot be created"),
        (
            lambda file: storage.write_bytes(f"{file}/x/y", b""),
            "a part of its path is a file, and a folder is expected",
        ),
    ],
)
def test_files_and_folders_in_each_others_place_are_told(tmp_path, act, words):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=words):
        act(str(tmp_path / "file"))


def test_unknown_scheme_names_itself():
    with pytest.raises(StorageError, match="gopher"):
        storage.read_bytes("gopher://x/y")


@pytest.mark.s3
def test_writes_wait_for_a_store_that_asks_for_time(bucket, s3_endpoint):
    """Kind of fault: reads are patient and writes are not; a busy prefix, which refuses everything for a while, ends a
    run (here for 12 s; benchmarks/bounded_inputs.py has a minute)."""
    code = """
import sys, time
from retailray import storage
began = time.monotonic()
storage.write_bytes(sys.argv[1], b"data")
assert storage.read_bytes(sys.argv[1]) == b"data"
assert storage.put_if_absent(sys.argv[1] + ".d/claim", b"data")
assert storage.compare_and_swap(sys.argv[1] + ".d/claim", b"more", before=b"data")
print(time.monotonic() - began)
"""
    with start_proxy(s3_endpoint, "slow-writes:12") as endpoint:
        environment = os.environ | {"AWS_ENDPOINT_URL_S3": endpoint}
        command = [sys.executable, "-c", code, f"{bucket}/folder/file"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 24, "two folders"


@pytest.mark.s3
def test_a_swap_whose_answer_is_lost_writes_nothing_without_a_condition(bucket, monkeypatch):
    """Kind of fault: a time-out of a conditional write becomes an unconditional one, and undoes another's."""
    address = f"{bucket}/pointer"
    assert storage.put_if_absent(address, b"one")
    fs = store_of(address)[0].fs

    def times_out(path, data, **options):
        assert "IfMatch" in options, "never without"
        raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(fs, "pipe_file", times_out)
        with pytest.raises(StorageError, match="no answer"):
            storage.compare_and_swap(address, b"two", before=b"one")
    assert s3fs.S3FileSystem(use_listings_cache=False).cat_file(address) == b"one"
    assert storage.compare_and_swap(address, b"two", before=b"one")
    assert not storage.compare_and_swap(address, b"three", before=b"one")
