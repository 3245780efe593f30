"""One suite for every store: a local folder, S3, Google Cloud Storage and Azure Blob, each by a real server.

radosgw joins where it is installed (see docs/cluster.md); RETAILRAY_STORE_OBJECTS: objects of the listing test.
"""

import concurrent.futures
import contextlib
import datetime
import gzip
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from retailray import storage
from retailray.errors import AccessDenied, NotFound, StorageError
from retailray.storage import opening
from retailray.storage.opening import store_of
from tests.conftest import S3_ENV, free_port, start_proxy
from tests.emulators import AZURE_ACCOUNT, AZURE_KEY

OBJECTS = int(os.environ.get("RETAILRAY_STORE_OBJECTS", "600"))
ODD = ("a b", "d//double", "%2F", "ü", "e\u0301", "plus+", "q?x=1", "#h", "star*", "[1]", "<x>&", "~", "=")


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory):
    tool = Path(os.environ.get("RETAILRAY_REAL_DATA", "/none"), "tools/rgw.sh")
    if not shutil.which("radosgw") or not tool.exists():
        pytest.skip("needs Ceph: apt-get install radosgw ceph-mon ceph-osd ceph-common")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="ceph"))  # its sockets' addresses must be short
    words = [str(tool), str(folder), str(port), S3_ENV["AWS_ACCESS_KEY_ID"], S3_ENV["AWS_SECRET_ACCESS_KEY"]]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with contextlib.suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{port}", timeout=1)
                break
            time.sleep(0.5)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
            environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
            yield
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "radosgw", "gs", "az"])
def root(request, tmp_path):
    """A new, empty place; its address."""
    kind = request.param
    if kind == "local":
        return str(tmp_path / "store")
    servers = {"s3": "s3_endpoint", "gs": "google", "az": "azure", "radosgw": "radosgw"}
    request.getfixturevalue(servers[kind])
    name = f"t{abs(hash(request.node.nodeid)) % 10**12}"
    address = f"{'s3' if kind == 'radosgw' else kind}://{name}"
    store_of(address)[0].fs.mkdir(name)
    return address


def test_what_is_written_is_read(root):
    storage.write_bytes(f"{root}/a/b.txt", b"hello")
    storage.write_bytes(f"{root}/a/b.txt", b"hello again")
    assert storage.read_bytes(f"{root}/a/b.txt") == b"hello again"
    assert storage.exists(f"{root}/a/b.txt")
    assert not storage.exists(f"{root}/a/b")
    assert storage.is_file(f"{root}/a/b.txt")
    assert not storage.is_file(f"{root}/a")
    assert list(storage.list_files(root)) == [f"{root}/a/b.txt"]
    assert storage.folder_entries(root) == {"a"}
    assert storage.folder_entries(f"{root}/none") == set()
    assert storage.matching(f"{root}/*/*.txt") == [f"{root}/a/b.txt"]
    storage.write_bytes(f"{root}/a/empty", b"")
    assert storage.read_bytes(f"{root}/a/empty") == b""
    storage.remove_file(f"{root}/a/empty")
    storage.remove_file(f"{root}/a/empty")
    storage.remove_folder(f"{root}/a")
    assert not storage.exists(f"{root}/a/b.txt")
    with pytest.raises(NotFound, match=r"b\.txt: not found"):
        storage.read_bytes(f"{root}/a/b.txt")


def test_a_file_is_written_and_read_piece_by_piece(root, tmp_path):
    data = random.Random(0).randbytes(9_500_000)
    (tmp_path / "source").write_bytes(data)
    storage.write_file(f"{root}/large", tmp_path / "source")
    with storage.open_binary(f"{root}/large") as file:
        for start, length in ((0, 10), (9_499_990, 100), (4_194_300, 20), (123, 5_000_000)):
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        file.seek(0)
        assert file.read() == data
    assert store_of(f"{root}/large")[0].get(store_of(f"{root}/large")[1], 5, 25) == data[5:25]
    [found] = storage.fetch_many([f"{root}/large"])
    assert found == data


@pytest.mark.parametrize("change", ["overwritten", "removed"])
def test_what_changes_while_it_is_read_is_no_mixture(root, change):
    """Kind of fault: a table of which one half is yesterday's."""
    old, new = b"a" * 9_000_000, b"b" * 9_000_000
    storage.write_bytes(f"{root}/table", old)
    with storage.open_binary(f"{root}/table") as file:
        begin = file.read(10)
        if change == "overwritten":
            storage.write_bytes(f"{root}/table", new)
        else:
            storage.remove_file(f"{root}/table")
        if storage.is_local(root):  # a file that is open stays what it was
            assert begin + file.read() == old
            return
        with pytest.raises(StorageError, match=r"overwritten or removed while it was read|not found"):
            file.read()


@pytest.mark.parametrize("turn", range(3))
def test_one_of_sixteen_creates(root, turn):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: storage.put_if_absent(f"{root}/claim", b"%d" % n), range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(f"{root}/claim") == b"%d" % won.index(True)


def test_one_of_sixteen_swaps(root):
    storage.write_bytes(f"{root}/LATEST", b"before")
    assert not storage.compare_and_swap(f"{root}/LATEST", b"new", before=b"another")
    if storage.is_local(root):  # compared and replaced
        assert storage.compare_and_swap(f"{root}/LATEST", b"new", before=b"before")
        return
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        swap = pool.map(lambda n: storage.compare_and_swap(f"{root}/LATEST", b"%d" % n, before=b"before"), range(16))
        won = list(swap)
    assert won.count(True) == 1
    assert storage.read_bytes(f"{root}/LATEST") == b"%d" % won.index(True)


def test_a_listing_tells_every_object_from_every_start(root, monkeypatch):
    """Names that a store, a client or an address may write in another way; pages are smaller than what is listed."""
    if storage.is_local(root):
        pytest.skip("local files are not listed by pages")
    monkeypatch.setattr("retailray.storage.google.PAGE", 97)
    monkeypatch.setattr("retailray.storage.azure.PAGE", 97)
    moto = root.startswith("s3://") and not os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION")
    odd = [one for one in ODD if not (moto and set("%?") & set(one))]  # which moto decodes twice
    names = [f"x/{one}/{number:05d}.jpg" for number in range(-(-OBJECTS // len(odd))) for one in odd]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"{root}/{name}", name.encode()), [*names, "xx/other", "y"]))
    wanted = {f"{root}/{name}": len(name.encode()) for name in names}
    told = [one for page in storage.object_pages(f"{root}/x") for one in page]
    assert {one.address: one.size for one in told} == wanted
    assert len(told) == len(wanted)
    assert all(one.identity for one in told)
    cuts = random.Random(1).sample(sorted(wanted, key=str.encode), 20)
    for count in (1, 2, 20):
        bounds = sorted(cuts[:count], key=str.encode)
        ranged = [one for page in storage.object_pages(f"{root}/x", bounds=bounds) for one in page]
        assert sorted(ranged) == sorted(told)
    asked = [one.address for one in random.Random(2).sample(told, 30)]
    assert storage.identities(asked) == [{one.address: one.identity for one in told}[name] for name in asked]
    for name, found in zip(asked, storage.fetch_many(asked), strict=True):
        assert found == name.removeprefix(f"{root}/").encode()


def test_an_identity_changes_with_the_content(root):
    address = f"{root}/one.jpg"
    storage.write_bytes(address, b"one")
    first = storage.identities([address, f"{root}/none"])
    assert storage.identities([address, f"{root}/none"]) == first
    storage.write_bytes(address, b"two")
    assert storage.identities([address])[0] not in (first[0], None)
    assert first[0] != first[1]


def test_a_bucket_that_is_not_there_is_said(root):
    other = f"{root}-none" if storage.is_uri(root) else f"{root}/none"
    with pytest.raises(NotFound, match="not found"):
        storage.read_bytes(f"{other}/a")
    with pytest.raises(NotFound, match="not found"):
        storage.check_readable(f"{other}/a")


def test_slow_downs_and_resets_are_waited_for(root, monkeypatch):
    """Each client behind a proxy that refuses, resets and truncates."""
    if storage.is_local(root):
        pytest.skip("a disk does neither")
    variable = {"s3": "AWS_ENDPOINT_URL_S3", "gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_CONNECTION_STRING"}
    named = os.environ[variable[root[:2]]]
    server = re.search(r"http://[0-9.:]+", named)[0]
    with start_proxy(server, "random") as endpoint:
        # a signature of Azure's holds for one host, a signed permission for every way to the account
        text = with_permission(named, endpoint) if root.startswith("az") else endpoint
        monkeypatch.setenv(variable[root[:2]], text)
        for number in range(60):
            storage.write_bytes(f"{root}/{number}", b"%d" % number * 200)
        found = storage.fetch_many([f"{root}/{number}" for number in range(60)])
        assert found == [b"%d" % number * 200 for number in range(60)]
        assert len(storage.list_files(root)) == 60
        assert sum(len(page) for page in storage.object_pages(root)) == 60
        told = requests.get(f"{endpoint}/__faults", timeout=10).json()
        assert told.get("slow_down", 0) + told.get("reset", 0) > 3


def with_permission(connection, endpoint):
    """A connection string with a permission of an hour in place of the key."""
    from azure.storage.blob import generate_account_sas

    permission = generate_account_sas(
        AZURE_ACCOUNT,
        AZURE_KEY,
        resource_types="sco",
        permission="rwdlac",
        expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
    )
    return f"BlobEndpoint={endpoint}/{AZURE_ACCOUNT};AccountName={AZURE_ACCOUNT};SharedAccessSignature={permission}"


def test_a_key_that_the_store_refuses_says_what_to_set(azure, monkeypatch):
    right = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    key = right.partition("AccountKey=")[2].partition(";")[0]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", right.replace(key, key[::-1].replace("=", "") + "=="))
    with pytest.raises(AccessDenied, match="check AZURE_STORAGE_CONNECTION_STRING") as said:
        storage.read_bytes("az://shop/a")
    assert key[:20] not in str(said.value)


def test_credentials_that_are_not_there_say_what_to_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AZURE_STORAGE", "GOOGLE", "STORAGE_EMU"))]:
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        storage.read_bytes("az://shop/a")


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")])
def test_a_package_that_is_missing_names_the_extra(scheme, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"retailray.storage.{'google' if scheme == 'gs' else 'azure'}", raising=False)
    opening._cloud_store.cache_clear()
    with pytest.raises(StorageError, match=rf"pip install 'retailray\[{extra}\]'"):
        storage.read_bytes(f"{scheme}://another-{extra}/a")


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("s3a://shop/a.jpg", "s3://shop/a.jpg"),
        ("S3N://shop/a.jpg", "s3://shop/a.jpg"),
        ("gcs://shop/a.jpg", "gs://shop/a.jpg"),
        ("abfs://shop/a.jpg", "az://shop/a.jpg"),
        ("abfss://shop@ours.dfs.core.windows.net/a/b.jpg", "az://shop/a/b.jpg"),
        ("abfss://shop@theirs.dfs.core.windows.net/a/b.jpg", "az://shop@theirs/a/b.jpg"),
        ("az://shop@theirs/a/b.jpg", "az://shop@theirs/a/b.jpg"),
        ("az://shop@OURS/a.jpg", "az://shop/a.jpg"),
        ("https://ours.blob.core.windows.net/shop/a%40b.jpg", "az://shop/a@b.jpg"),
        ("https://ours.blob.core.windows.net/shop/a%20b.jpg", "az://shop/a b.jpg"),
        # another account's pictures, and those with a signature, are of the web
        ("https://theirs.blob.core.windows.net/shop/a.jpg", "https://theirs.blob.core.windows.net/shop/a.jpg"),
        ("https://ours.blob.core.windows.net/shop/a.jpg?sig=x", "https://ours.blob.core.windows.net/shop/a.jpg?sig=x"),
    ],
)
@pytest.mark.parametrize("by", ["name", "connection string"])
def test_addresses_have_one_spelling(written, canonical, by, monkeypatch):
    """Kind of fault: an image is fetched every night, because the listing writes its address in another way."""
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    if by == "name":
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    else:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=ours;AccountKey=eA==;EndpointSuffix=x")
    assert storage.canonical(written) == canonical
    assert storage.canonical(canonical) == canonical


@pytest.mark.parametrize(
    "variables",
    [
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=ours;AccountKey=c2VjcmV0;DefaultEndpointsProtocol=https"},
        {"AZURE_STORAGE_ACCOUNT_NAME": "ours", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"},
        {"AZURE_STORAGE_ACCOUNT_NAME": "ours", "AZURE_STORAGE_SAS_TOKEN": "sig=c2VjcmV0"},
    ],
)
def test_keys_of_the_environment_are_for_its_own_account_alone(variables, monkeypatch):
    """Kind of fault: an address of another account is read in ours, or gets our permission."""
    for name in [name for name in os.environ if name.startswith("AZURE_STORAGE")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mine, theirs = (store_of(address)[0].fs.service_client for address in ("az://shop/a", "az://shop@theirs/a"))
    assert mine.url.startswith("https://ours.blob.core.windows.net/")
    assert theirs.url == "https://theirs.blob.core.windows.net/"
    assert type(theirs.credential).__name__ == "DefaultAzureCredential"


@pytest.mark.parametrize("host", ["[2001:db8::1]#", "134744072#.x", "evil?", "a.b", "UPPER-case", "x" * 25])
def test_what_is_no_account_is_asked_nothing(host, monkeypatch):
    """Kind of fault: a catalog chooses the host to which the machine's token is sent."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    with pytest.raises(StorageError, match="no storage account"):
        store_of(f"az://shop@{host}/a")


def test_a_listing_of_azure_that_is_refused_between_two_pages_is_whole(azure, monkeypatch):
    """Kind of fault: what was not told is taken for gone, since a listing that failed looks like one that ended."""
    monkeypatch.setattr("retailray.storage.azure.PAGE", 10)
    store_of("az://paged")[0].fs.mkdir("paged")
    for number in range(35):
        storage.write_bytes(f"az://paged/{number:02d}", b"x")
    store, _ = store_of("az://paged")
    run, asked = store._run, []

    def refused_sometimes(work):
        asked.append(1)
        if len(asked) in (2, 4):
            work.close()
            raise HttpResponseError(response=SimpleNamespace(status_code=503, reason="busy", headers={}))
        return run(work)

    monkeypatch.setattr(store, "_run", refused_sometimes)
    found = [one.address for page in storage.object_pages("az://paged") for one in page]
    assert found == [f"az://paged/{number:02d}" for number in range(35)]


def test_no_pickle_of_a_store_has_a_key(monkeypatch):
    """Ray writes what it is given to places that others read."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    names = {"type": "service_account", "client_email": "scorer@shop.iam", "token_uri": "https://none"}
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv(storage.GOOGLE_KEY, json.dumps(names | {"private_key": text}))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=ours;AccountKey=c2VjcmV0")
    for address in ("gs://shop/a", "az://shop/a", "s3://shop/a"):
        pickled = pickle.dumps(storage.arrow_filesystem(address))
        assert not any(
            secret in pickled for secret in (b"PRIVATE KEY", b"c2VjcmV0", S3_ENV["AWS_SECRET_ACCESS_KEY"].encode())
        )
        pickle.loads(pickled)


def test_what_is_stored_packed_is_read_as_it_is_stored(google):
    """Kind of fault: an object is decompressed, and the reader stops at its compressed size, so rows are lost."""
    from retailray.storage.google import google_store

    google_store().fs.mkdir("packed")
    packed = gzip.compress(b"image,label\n" * 90_000)
    blob = google_store().client.bucket("packed").blob("table.csv")
    blob.content_encoding = "gzip"
    blob.upload_from_string(packed)
    with storage.open_binary("gs://packed/table.csv") as file:
        assert file.read() == packed
