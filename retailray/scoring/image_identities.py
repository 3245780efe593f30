"""What identifies the images of a catalog now, and which are not there: asked of the stores, into the ledger."""

import functools
from collections.abc import Iterator

import pyarrow as pa

from retailray import storage
from retailray.data.arrow_tables import rechunk
from retailray.data.listing import list_images, narrowed, shared_folder
from retailray.scoring.ledger import Ledger

ASKED_ROWS = 5_000  # images that are asked for one by one, at a time
LISTED_ROWS = 200_000  # objects of a listing that are joined at once
SAMPLE = 2000  # addresses that are sampled to divide the listing of a bucket into ranges


# what lies in a Parquet file or in an archive, which no listing tells
_EMBEDDED = r"regexp_matches(uri, '[.](?:(?:parquet|pq)#[^/]+/[0-9]+$|(?:zip|tar|tgz|tbz2|tar[.]gz|tar[.]bz2)!/)', 'i')"


def _image_uris(ledger: Ledger) -> Iterator[list[str]]:
    for table in ledger.batches(f"select uri from images where not {_EMBEDDED}", 50_000):
        yield table.column("uri").to_pylist()


def folders_of(ledger: Ledger) -> list[str]:
    """Folders that hold all images: for every scheme and bucket (or root of a disk), the one that they share, or
    those in it that hold them."""
    place = "regexp_extract(uri, '^([a-z0-9+.-]+://)?[^/]*', 0)"
    by_place = f"select min(uri), max(uri) from images where not {_EMBEDDED} group by {place}"
    found = ledger.query(by_place)
    return narrowed(sorted(shared_folder(first, last) for first, last in found), functools.partial(_children, ledger))


def _children(ledger: Ledger, folder: str, most: int) -> tuple[list[str], bool]:
    inside = "from (select substr(uri, length($folder) + 2) as path from images where starts_with(uri, $folder || '/'))"
    query = f"select distinct split_part(path, '/', 1) {inside} where contains(path, '/') limit {most}"
    names = [name for (name,) in ledger.query(query, folder=folder)]
    [(has_own,)] = ledger.query(f"select count(*) > 0 {inside} where not contains(path, '/')", folder=folder)
    return sorted(names), has_own


def add_identities(ledger: Ledger) -> None:
    """Ask the stores for what identifies the images, and for which are not there.

    Folders whose listing was given up are in ``not_listed``, with the numbers; their images are asked for one by
    one. Raises StorageError.
    """
    covered: list[str] = []
    num_images = ledger.one(f"select count(*) from images where not {_EMBEDDED}")
    listed = f"(select uri from images where not {_EMBEDDED})"
    drawn = ledger.table(f"select uri from {listed} using sample reservoir({SAMPLE} rows) repeatable (0)")
    sample = drawn.column(0).to_pylist()
    pages = list_images(
        _image_uris(ledger), folders_of(ledger), num_images, covered=covered, given_up=ledger.not_listed, sample=sample
    )
    for pages_together in rechunk(pages, LISTED_ROWS):  # every join reads all of the images
        ledger.insert("listed", pages_together, "select uri, identity, size from piece semi join images using (uri)")
    _add_embedded(ledger)
    for facts in ledger.not_listed:
        _ask_for(ledger, facts["folder"])
    ledger.insert(
        "absent",
        pa.table({"folder": pa.array(covered, pa.string())}),
        """
        select uri from images anti join listed using (uri) where exists (
            select 1 from piece where case when folder = ''
            then not contains(uri, '://') else starts_with(uri, folder || '/') end)
        """,
    )


def _ask_for(ledger: Ledger, folder: str) -> None:
    """What identifies the images below a folder that no listing told, by a question each."""
    below = f"select uri from images anti join listed using (uri) where starts_with(uri, '{_quoted(folder)}/')"
    for table in ledger.batches(below, ASKED_ROWS):
        uris = table.column("uri")
        identities = storage.identities(uris.to_pylist())
        piece = pa.table({"uri": uris, "identity": pa.array(identities, pa.string())})
        ledger.insert("listed", piece, "select uri, identity, null from piece where identity not in ('', 'absent')")


def _add_embedded(ledger: Ledger) -> None:
    """An image that lies in a Parquet file or in an archive has the identity of its file."""
    row = r"'(?:#[^/]+/[0-9]+|!/.*)$'"
    embedded = f"from images where {_EMBEDDED}"
    files = ledger.table(f"select distinct regexp_replace(uri, {row}, '') as file {embedded}").column(0).to_pylist()
    known = [(file, identity) for file, identity in zip(files, storage.identities(files), strict=True) if identity]
    if known:
        piece = pa.table({"file": [file for file, _ in known], "identity": [identity for _, identity in known]})
        query = f"(select uri, regexp_replace(uri, {row}, '') as file, regexp_extract(uri, {row}) as place {embedded})"
        ledger.insert("listed", piece, f"select uri, identity || place, null from {query} join piece using (file)")


def _quoted(text: str) -> str:
    return text.replace("'", "''")
