"""Listings: whatever the cuts, every object is told once."""

import pyarrow as pa
import pytest
import s3fs

from retailray.data import listing
from retailray.errors import StorageError

pytestmark = pytest.mark.s3
ODD = ["a/2 ü.jpg", "b/𝒳.jpg", "b/ﬀ.jpg", "c+d.jpg", "100%.jpg"]
NAMES = sorted(["a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg", *ODD, *(f"d/{n:04d}" for n in range(1200))])


@pytest.fixture(scope="module")
def folder(s3_endpoint):
    fs = s3fs.S3FileSystem()
    fs.mkdir("listings")
    fs.pipe({f"listings/shop/{name}": name.encode() for name in NAMES})
    fs.pipe("listings/shopping/not-ours.jpg", b"x")
    return "s3://listings/shop"


@pytest.mark.parametrize(
    "cuts", [[], ["d/0100"], ["a", "a/2.jpg", "b/ﬀ.jpg", "d/0000", "d/0000x", "zzz"], ["b/𝒳.jpg", "d/1199"]]
)
def test_every_object_is_told_once(folder, cuts):
    bounds = sorted((f"{folder}/{cut}" for cut in cuts), key=str.encode)
    told = [row for page in listing.iterate(folder, bounds=bounds) for row in page]
    assert sorted(address for address, _, _ in told) == sorted(f"{folder}/{name}" for name in NAMES)
    assert {size for address, _, size in told if "/d/" in address} == {6}


def test_a_catalogs_own_addresses_cut_the_listing(folder, monkeypatch):
    monkeypatch.setattr(listing, "RANGE_ROWS", 100)
    asked = []
    iterate = listing.iterate
    monkeypatch.setattr(listing, "iterate", lambda *a, **k: asked.append(k["bounds"]) or iterate(*a, **k))
    uris = [f"{folder}/{name}" for name in NAMES]
    covered = []
    pages = listing.list_images([uris], [folder], len(uris), covered=covered, sample=uris[::7])
    assert sorted(pa.concat_tables(pages).column("uri").to_pylist()) == sorted(uris)
    assert covered == [folder]
    assert len(asked[0]) == listing.RANGES - 1


def test_what_fails_in_a_range_is_said():
    with pytest.raises(StorageError):
        list(listing.iterate("s3://no-such-bucket/x", bounds=["s3://no-such-bucket/x/m"]))
