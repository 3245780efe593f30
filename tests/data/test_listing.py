"""Listings: whatever the cuts, every object is told once."""

import pyarrow as pa
import pytest
import s3fs

from retailray import storage
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
    told = [row for page in storage.object_pages(folder, bounds=bounds) for row in page]
    assert sorted(address for address, _, _ in told) == sorted(f"{folder}/{name}" for name in NAMES)
    assert {size for address, _, size in told if "/d/" in address} == {6}


def test_a_catalogs_own_addresses_cut_the_listing(folder, monkeypatch):
    monkeypatch.setattr(listing, "RANGE_ROWS", 100)
    asked = []
    iterate = storage.object_pages
    monkeypatch.setattr(storage, "object_pages", lambda *a, **k: asked.append(k["bounds"]) or iterate(*a, **k))
    uris = [f"{folder}/{name}" for name in NAMES]
    covered = []
    pages = listing.list_images([uris], [folder], len(uris), covered=covered, given_up=[], sample=uris[::7])
    assert sorted(pa.concat_tables(pages).column("uri").to_pylist()) == sorted(uris)
    assert covered == [folder]
    assert len(asked[0]) == listing.RANGES - 1


def test_what_fails_in_a_range_is_said():
    with pytest.raises(StorageError):
        list(storage.object_pages("s3://no-such-bucket/x", bounds=["s3://no-such-bucket/x/m"]))


@pytest.fixture(scope="module")
def crowded(s3_endpoint):
    """Forty images of ours in two folders, one beside them, and 3,000 objects that are not ours."""
    fs = s3fs.S3FileSystem()
    fs.mkdir("crowded")
    ours = [f"crowded/shop/a/x/{n}.jpg" for n in range(20)] + [f"crowded/shop/z/{n}.jpg" for n in range(20)]
    fs.pipe(dict.fromkeys(ours, b"picture"))
    fs.pipe({f"crowded/shop/m/{n:05d}": b"x" for n in range(3000)})
    fs.pipe({"crowded/shop/m/mine.jpg": b"picture"})
    return [f"s3://{name}" for name in ours]


def told_by(monkeypatch):
    """What listings tell, as they tell it."""
    told = []
    inner = storage.object_pages

    def noted(*arguments, **options):
        for page in inner(*arguments, **options):
            told.append((arguments[0], len(page)))
            yield page

    monkeypatch.setattr(storage, "object_pages", noted)
    return told


def test_what_holds_the_images_is_listed_and_not_all_that_is_beside_them(crowded, monkeypatch):
    """Kind of fault: two rows in distant folders of a bucket list all of the bucket."""
    told = told_by(monkeypatch)
    found = listing.identities([*crowded, "s3://crowded/shop/a/none.jpg"])
    assert len(set(found[:40])) == 1
    assert found[40] == "absent"
    assert sum(count for _, count in told) == 40
    assert {folder for folder, _ in told} == {"s3://crowded/shop/a", "s3://crowded/shop/z"}


def test_a_listing_that_tells_too_much_else_is_given_up_with_a_word(crowded, monkeypatch, capsys):
    """Kind of fault: it ends in silence, and every image that was not reached is downloaded every night."""
    monkeypatch.setattr(listing, "MAX_FREE", 1500)
    told = told_by(monkeypatch)
    uris = [*crowded, "s3://crowded/shop/m/mine.jpg"]
    found = listing.identities(uris)
    assert None not in found
    assert found[40] == found[0], "asked for by itself"
    assert sum(count for _, count in told) <= 40 + 2000
    said = capsys.readouterr().out
    assert '"not_listed": "s3://crowded/shop/m"' in said
    assert '"images": 41' in said


def test_folders_of_other_files_are_listed_up_to_a_limit(crowded, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(listing, "MAX_FREE", 1500)
    assert len(listing.files_below("s3://crowded/shop/a", 20)) == 20
    assert listing.files_below("s3://crowded/shop", 40) is None
    for number in range(30):
        (tmp_path / str(number)).write_text("")
    assert len(listing.files_below(str(tmp_path), 30)) == 30
    monkeypatch.setattr(listing, "MAX_FREE", 10)
    assert listing.files_below(str(tmp_path), 1) is None
    assert capsys.readouterr().out.count("not_listed") == 2
