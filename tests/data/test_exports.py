"""Catalogs in the layouts of shops and data sets: ``shared/inputs/exports``, whose truth its README gives.

The truth is written out here, and the pictures are told apart by their bytes: nothing of ours says what is right.
"""

import hashlib
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog

LABELS = ("Mugs", "Bags", "Shirts")  # of product k: k mod 3; product k has the pictures 3k, 3k + 1, 3k + 2
CODES = {name: {LABELS[at]: name_ for at, name_ in enumerate(codes)} for name, codes in {
    "from 0": "012",
    "from 1": "123",
    "upper": ("MUGS", "BAGS", "SHIRTS"),
    "names": LABELS,
}.items()}  # fmt: skip
# folder: what is given, by which names labels go, and whether the source knows products
LAYOUTS = {
    "shopify/products_export.csv": ({}, "names", True),
    "merchant-tsv/feed.tsv": ({}, "names", True),
    "woocommerce/wc-product-export.csv": ({}, "names", True),
    "json-list-in-cell/products.csv": ({}, "names", True),
    "coco/instances.json": ({}, "names", False),
    "url-list-json/train.json": ({}, "from 0", False),
    "zip/data.zip": ({}, "names", False),
    "webdataset": ({}, "from 0", True),
    "webdataset/shard-*.tar": ({}, "from 0", True),
    "json-array/catalog.json": ({}, "names", True),
    "nested-jsonl/listings_0.json.gz": ({"image_template": "pics/{image}.jpg"}, "upper", True),
    "prefix-folders/articles.csv": (
        {
            "image_template": "images/{article_id:.3}/{article_id}.jpg",
            "label": "product_type_name",
            "group": "product_code",
        },
        "names",
        True,
    ),
    "space-separated/train.txt": ({"image": "path", "label": "super_class_id", "group": "class_id"}, "from 1", True),
    "count-line-and-padding/list_category_img.txt": (
        {"image": "image_name", "label": "category_label", "skip_lines": 1},
        "from 1",
        False,
    ),
    "headerless-with-split/import.csv": ({"columns": ["split", "image", "label"], "split": "split"}, "names", False),
}


@pytest.fixture(scope="module")
def exports():
    where = os.environ.get("RETAILRAY_REAL_DATA")
    if not where:
        pytest.skip("needs the exports: set RETAILRAY_REAL_DATA to a folder with inputs/exports (CI does)")
    return Path(where) / "inputs/exports"


def pictures_of(folder):
    """The number of each picture by the digest of its bytes, by names that end in it, of folders and archives."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as zipped:
                found |= {name: zipped.read(name) for name in zipped.namelist() if name.endswith(".jpg")}
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                found |= {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}
        elif path.suffix == ".jpg":
            found[str(path.relative_to(folder))] = path.read_bytes()
    assert len(found) == 24
    return {hashlib.sha256(found[name]).hexdigest(): number for number, name in enumerate(sorted(found))}


def read(uri, **settings):
    catalog = read_catalog(CatalogSection(uri=str(uri), **settings))
    rows = catalog.rows.to_pylist()
    found = storage.fetch_many([row["uri"] or "/nowhere" for row in rows])
    return catalog, [row | {"bytes": data} for row, data in zip(rows, found, strict=True)]


@pytest.mark.real
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_comes_out_with_all_pictures_labels_and_products(name, exports):
    settings, codes, has_products = LAYOUTS[name]
    catalog, rows = read(exports / name, **settings)
    number_of = pictures_of(exports / name.split("/")[0])
    numbers = [number_of[hashlib.sha256(row["bytes"]).hexdigest()] for row in rows]
    assert sorted(numbers) == list(range(24))
    for number, row in zip(numbers, rows, strict=True):
        assert row["label"] == CODES[codes][LABELS[number // 3 % 3]], row
        assert row["denied_reason"] == ""
    products = {}
    for number, row in zip(numbers, rows, strict=True):
        products.setdefault(row["group"], set()).add(number // 3 if has_products else number)
    assert len(products) == (8 if has_products else 24)
    assert all(len(members) == 1 for members in products.values())
    assert len({row["id"] for row in rows}) == 24
    counts = catalog.source.counts
    assert counts.records == counts.with_pictures + counts.without_image + counts.failed
    assert counts.pictures == 24


@pytest.mark.real
def test_lines_with_loose_commas_become_error_rows_and_all_others_are_read(exports):
    settings = {"image_template": "images/{id}.jpg", "label": "articleType", "id": "id", "bad_lines": "error"}
    catalog, rows = read(exports / "id-only-and-loose-commas/styles.csv", **settings)
    bad = [row for row in rows if row["fault_code"]]
    assert [row["line"] for row in bad] == [6, 11, 22]
    assert {row["fault_code"] for row in bad} == {"bad_line"}
    number_of = pictures_of(exports / "id-only-and-loose-commas")
    good = [row for row in rows if not row["fault_code"]]
    numbers = [number_of[hashlib.sha256(row["bytes"]).hexdigest()] for row in good]
    assert len(set(numbers)) == len(good) == 21
    assert all(row["label"] == LABELS[number // 3 % 3] for number, row in zip(numbers, good, strict=True))
    assert (catalog.source.counts.records, catalog.source.counts.failed) == (24, 3)
