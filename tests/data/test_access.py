"""Which addresses a catalog may name."""

import pytest

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of, refusal
from retailray.errors import ConfigError


@pytest.mark.parametrize(
    ("file", "path", "allow", "allowed"),
    [
        ("/shop/c.csv", "img/1.png", [], True),
        ("/shop/c.csv", "/elsewhere/1.png", [], True),
        ("/shop/c.csv", "../1.png", [], False),
        ("/shop/c.csv", "s3://any/1.png", [], True),
        ("/shop/c.csv", "https://cdn.example.com/1.png", [], True),
        ("/shop/c.csv", "http://127.0.0.1:8265/1.png", [], False),
        ("/shop/c.csv", "http://localhost/1.png", [], False),
        ("/shop/c.csv", "http://169.254.169.254/latest/meta-data/", [], False),
        ("/shop/c.csv", "http://127.0.0.1:8265/img/1.png", ["http://127.0.0.1:8265/img"], True),
        ("/shop/c.csv", "http://127.0.0.1:8265/api/jobs", ["http://127.0.0.1:8265/img"], False),
        ("/shop/c.csv", "s3://any/1.png", ["s3://other"], False),
        ("/shop/c.csv", "s3://other/1.png", ["s3://other"], True),
        ("/shop/c.csv", "s3://other-private/1.png", ["s3://other"], False),
        ("/shop/c.csv", "gs://any/1.png", [], True),
        ("/shop/c.csv", "ftp://cdn.example.com/1.png", [], False),
        ("/shop/c.csv", "ftp://127.0.0.1/1.png", [], False),
        ("/shop/c.csv", "webhdfs://127.0.0.1:9870/1.png", [], False),
        ("/shop/c.csv", "sftp://cdn.example.com/1.png", [], False),
        ("/shop/c.csv", "FTP://cdn.example.com/1.png", [], False),
        ("/shop/c.csv", "sftp://cdn.example.com/1.png", ["sftp://cdn.example.com"], True),
        ("hdfs://a/c.csv", "hdfs://a/x/1.png", [], True),
        ("/shop/c.csv", "HTTP://169.254.169.254/latest/meta-data/", [], False),
        ("/shop/c.csv", "HTTPS://cdn.example.com/1.png", [], True),
        ("https://own.example.com/c.csv", "https://evil.example.org?@own.example.com/1.png", [], False),
        ("https://own.example.com/c.csv", "https://own.example.com@evil.example.org/1.png", [], False),
        ("abfs://a@account/c.csv", "abfs://b@account/1.png", [], False),
        ("s3://shop/c.csv", "S3://theirs/1.png", [], False),
        ("s3://shop/c.csv", "img/1.png", [], True),
        ("s3://shop/a/c.csv", "s3://shop/b/1.png", [], True),
        ("s3://shop/a/c.csv", "s3://shop/b/1.png", ["https://cdn.example.com"], True),
        ("s3://shop/a/c.csv", "../b/1.png", [], False),
        ("s3://shop/c.csv", "s3://theirs/1.png", [], False),
        ("s3://shop/c.csv", "https://cdn.example.com/1.png", [], False),
        ("s3://shop/c.csv", "https://cdn.example.com/1.png", ["https://cdn.example.com"], True),
        ("s3://shop/c.csv", "/etc/hostname", [], False),
        ("s3://shop/c.csv", "/data/1.png", ["/data"], True),
        ("https://a.example.com/x/c.csv", "https://a.example.com/y/1.png", [], True),
        ("https://a.example.com/x/c.csv", "https://b.example.com/1.png", [], False),
        ("https://a.example.com/x/c.csv", "http://a.example.com/x/1.png", [], False),
    ],
)
def test_where_images_may_lie(file, path, allow, allowed):
    """Kind of fault: a row of a catalog reads what its author may not."""
    section, root = CatalogSection(uri=file, allow=allow), storage.parent(file)
    why = refusal(path, storage.join(root, path), file, root, section)
    assert (why == "") is allowed, why
    assert allowed or "catalog.allow" in why


@pytest.mark.parametrize("address", ["http://127.0.0.1:9871/1.png", "ftp://cdn.example.com:21/1.png"])
def test_what_is_refused_names_the_entry_that_would_allow_it(address):
    """Kind of fault: people name a host in catalog.allow as they think of it, and are told to name it."""
    why = refusal(address, address, "/shop/c.csv", "/shop", CatalogSection(uri="/shop/c.csv"))
    entry = why.removesuffix(" in catalog.allow").rpartition(" name ")[2]
    section = CatalogSection(uri="/shop/c.csv", allow=[entry])
    assert refusal(address, address, "/shop/c.csv", "/shop", section) == ""


@pytest.mark.parametrize("allow", [[], ["https://cdn.example.com"]])
def test_a_password_in_an_address_is_not_repeated(allow):
    section = CatalogSection(uri="/shop/c.csv", allow=allow)
    address = "https://me:hush-hush@cdn.example.com/1.png"
    why = refusal(address, address, "/shop/c.csv", "/shop", section)
    assert "an address at https://...@cdn.example.com with a password" in why
    assert "hush-hush" not in why


def test_headers_take_secrets_from_the_environment(monkeypatch):
    section = CatalogSection(uri="/c.csv", http_headers={"Authorization": "Bearer ${SHOP_TOKEN}"})
    with pytest.raises(ConfigError, match="SHOP_TOKEN"):
        access_of(section)
    monkeypatch.setenv("SHOP_TOKEN", "secret")
    assert access_of(section).headers == (("Authorization", "Bearer secret"),)
    assert "secret" not in section.model_dump_json()


@pytest.mark.parametrize(
    ("address", "folder"),
    [("/a/b/c.csv", "/a/b"), ("s3://b/x/*.csv", "s3://b/x"), ("s3://b/y=*/c.csv", "s3://b"),
     ("/a/classes", "/a/classes"), ("https://h/x/c.parquet", "https://h/x")],
)  # fmt: skip
def test_the_folder_of_an_address(address, folder):
    assert storage.folder_of(address) == folder
