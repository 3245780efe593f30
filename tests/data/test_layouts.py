"""Layouts of exports and data sets, made here in the form that their programs write: all pictures, labels, products.

The truth of each: eight products of three pictures, the label of product k is ``LABELS[k % 3]``.
"""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog
from retailray.data.recognition import known_layouts
from retailray.errors import CatalogError, StorageError

LABELS = ("Mugs", "Bags", "Shirts")


def jpeg(number):
    """A picture whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 10, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pics(k):
    return [f"pics/p{3 * k + at:02d}.png" for at in range(3)]


def table(rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def one_by_one(make):
    return [make(f"pics/p{n:02d}.png", LABELS[n // 3 % 3], n) for n in range(24)]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def feed(head, tag, end):
    items = "".join(
        f"<{tag}><g:id>id{k}</g:id><title>5 &lt; 6 &amp; {k}</title><g:image_link>{pics(k)[0]}</g:image_link>"
        + "".join(f"<g:additional_image_link>{one}</g:additional_image_link>" for one in pics(k)[1:])
        + f"<g:product_type>Home &gt; {LABELS[k % 3]}</g:product_type></{tag}>"
        for k in range(8)
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>{head}{items}{end}'


GOOGLE = 'xmlns:g="http://base.google.com/ns/1.0"'
K = range(8)
SPLITS = ("TRAIN", "VALIDATION", "TEST", "UNASSIGNED", "dev", "val")
NAMED = dict(zip("012", LABELS, strict=True))
# name: file, its text, settings, the layout that is recognised, whether products are known
LAYOUTS = {
    "magento": (
        "export.csv",
        table(
            [
                [
                    "sku",
                    "attribute_set_code",
                    "product_type",
                    "categories",
                    "description",
                    "base_image",
                    "additional_images",
                ]
            ]
            + [
                [k, "Default", "simple", f"Shop/{LABELS[k % 3]},Sale", "<p>a\nb</p>", pics(k)[0], ",".join(pics(k)[1:])]
                for k in K
            ]
        ),
        {},
        "magento",
        True,
    ),
    "bigcommerce": (
        "export.csv",
        table(
            [["Product ID", "Product Name", "Category", *(f"Product Image File - {at}" for at in (1, 2, 3))]]
            + [[k, "N", f"Shop/{LABELS[k % 3]};Sale", *pics(k)] for k in K]
        ),
        {},
        "bigcommerce",
        True,
    ),
    "prestashop": (
        "products.csv",
        table(
            [["Product ID", "Name *", "Categories (x,y,z...)", "Image URLs (x,y,z...)"]]
            + [[k, "N", f"{LABELS[k % 3]},Sale", ",".join(pics(k))] for k in K],
            ";",
        ),
        {},
        "prestashop",
        True,
    ),
    "google rss": (
        "feed.xml",
        feed(f'<rss version="2.0" {GOOGLE}><channel><title>s</title>', "item", "</channel></rss>"),
        {},
        "merchant",
        True,
    ),
    "google atom": (
        "feed.xml",
        feed(f'<feed xmlns="http://www.w3.org/2005/Atom" {GOOGLE}><title>s</title>', "entry", "</feed>"),
        {},
        "merchant",
        True,
    ),
    "merchant csv": (
        "feed.csv",
        table(
            [["id", "title", "image_link", "additional_image_link", "google_product_category"]]
            + [[k, '5" x', pics(k)[0], ",".join(pics(k)[1:]), f"A > {LABELS[k % 3]}"] for k in K]
        ),
        {},
        "merchant",
        True,
    ),
    "vertex ai": (
        "import.jsonl",
        json_lines(
            one_by_one(lambda path, label, n: {"imageGcsUri": path, "classificationAnnotation": {"displayName": label}})
        ),
        {},
        "vertex-ai",
        False,
    ),
    "label studio": (
        "export.json",
        json.dumps(
            one_by_one(
                lambda path, label, n: {
                    "id": n,
                    "data": {"image": path},
                    "annotations": [{"result": [{"value": {"choices": [label]}}]}],
                    "project": 1,
                }
            )
        ),
        {},
        "label-studio-json",
        False,
    ),
    "label studio min": (
        "export.json",
        json.dumps(one_by_one(lambda path, label, n: {"image": path, "id": n, "choice": label, "annotation_id": n})),
        {},
        "label-studio",
        False,
    ),
    "open food facts": (
        "products.jsonl",
        json_lines(
            one_by_one(
                lambda path, label, n: {
                    "code": str(n),
                    "product_name": "N",
                    "image_url": path,
                    "categories": f"{label}, Food",
                }
            )
        ),
        {},
        "open-food-facts",
        False,
    ),
    "sagemaker list": (
        "train.lst",
        "".join(f"{n}\t{n // 3 % 3}\tpics/p{n:02d}.png\n" for n in range(24)),
        {"columns": ["n", "label", "image"], "label_map": NAMED},
        None,
        False,
    ),
    "paths and numbers": (
        "list.txt",
        "".join(f"pics/p{n:02d}.png {n // 3 % 3}\n" for n in range(24)),
        {"columns": ["image", "label"], "label_map": NAMED},
        None,
        False,
    ),
    "python lists": (
        "c.csv",
        table([["sku", "images", "category"]] + [[k, str(pics(k)), LABELS[k % 3]] for k in K]),
        {"image": "images", "label": "category", "id": "sku"},
        None,
        True,
    ),
    "bars": (
        "c.csv",
        table([["sku", "image", "label"]] + [[k, "|".join(pics(k)), LABELS[k % 3]] for k in K]),
        {"group": "sku"},
        None,
        True,
    ),
    "own separator": (
        "c.csv",
        table([["sku", "image", "label"]] + [[k, " ~ ".join(pics(k)), LABELS[k % 3]] for k in K]),
        {"group": "sku", "image_separator": "~"},
        None,
        True,
    ),
    "lists of objects": (
        "p.jsonl",
        json_lines(
            {
                "asin": f"A{k}",
                "categories": [["Home", LABELS[k % 3]]],
                "images": [{"large": one, "variant": "MAIN"} for one in pics(k)],
            }
            for k in K
        ),
        {"image": "images.large", "label": "categories", "id": "asin"},
        None,
        True,
    ),
    "shop api": (
        "p.json",
        json.dumps(
            {
                "products": [
                    {"id": k, "product_type": LABELS[k % 3], "images": [{"src": one} for one in pics(k)]} for k in K
                ]
            }
        ),
        {"image": "images", "label": "product_type", "id": "id"},
        None,
        True,
    ),
    "split words": (
        "c.csv",
        table([["image", "label", "ml_use"], *one_by_one(lambda path, label, n: [path, label, SPLITS[n % 6]])]),
        {"split": "ml_use"},
        None,
        False,
    ),
}


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "pics").mkdir()
    for number in range(24):
        (tmp_path / f"pics/p{number:02d}.png").write_bytes(jpeg(number))
    return tmp_path


def check(catalog, *, has_products):
    """Every picture once, told by its colour, with the label and product that are its own."""
    rows = catalog.rows.to_pylist()
    assert [row["denied_reason"] for row in rows] == [""] * 24
    numbers = [
        Image.open(io.BytesIO(data)).getpixel((5, 5))[0] // 10
        for data in storage.fetch_many([row["uri"] for row in rows])
    ]
    assert sorted(numbers) == list(range(24))
    assert [row["label"] for row in rows] == [LABELS[number // 3 % 3] for number in numbers]
    products = {}
    for number, row in zip(numbers, rows, strict=True):
        products.setdefault(row["group"], set()).add(number // 3 if has_products else number)
    assert len(products) == (8 if has_products else 24)
    assert all(len(members) == 1 for members in products.values())
    assert len({row["id"] for row in rows}) == 24


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read(name, shop):
    file, text, settings, layout, has_products = LAYOUTS[name]
    (shop / file).write_text(text)
    catalog = read_catalog(CatalogSection(uri=str(shop / file), **settings))
    check(catalog, has_products=has_products)
    assert catalog.source.format == layout


def test_lists_in_parquet(shop):
    columns = {"sku": list(map(str, K)), "images": list(map(pics, K)), "category": [LABELS[k % 3] for k in K]}
    pq.write_table(pa.table(columns), shop / "c.parquet")
    check(
        read_catalog(CatalogSection(uri=str(shop / "c.parquet"), image="images", label="category", id="sku")),
        has_products=True,
    )


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz", "tar.bz2"])
@pytest.mark.parametrize("inside", ["table", "class folders", "json"])
def test_archives(kind, inside, shop):
    files = {}
    for number, (path, label) in enumerate(one_by_one(lambda path, label, n: (path, label))):
        files[f"data/{label}/{number}.png" if inside == "class folders" else f"data/{path}"] = jpeg(number)
    rows = one_by_one(lambda path, label, n: {"image": path, "label": label})
    if inside == "table":
        files["data/train.csv"] = table([["image", "label"]] + [list(row.values()) for row in rows]).encode()
    if inside == "json":
        files["data/all.json"] = json.dumps(rows).encode()
    files["__MACOSX/data/._p00.png"] = b"resource fork"
    path = shop / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
    else:
        with tarfile.open(path, {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2"}[kind]) as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    check(read_catalog(CatalogSection(uri=str(path))), has_products=False)


def test_a_folder_with_a_known_export_is_that_export(shop):
    """Kind of fault: the folder is read as class folders, and its one label is the folder of the pictures."""
    (shop / "feed.xml").write_text(LAYOUTS["google rss"][1])
    check(read_catalog(CatalogSection(uri=str(shop))), has_products=True)


def test_compressed_documents(shop):
    with gzip.open(shop / "all.json.gz", "wt") as file:
        json.dump(one_by_one(lambda path, label, n: {"image": path, "label": label}), file)
    check(read_catalog(CatalogSection(uri=str(shop / "all.json.gz"))), has_products=False)


def test_a_layout_of_ones_own_is_a_file(shop):
    (shop / "ours.yaml").write_text(
        "title: our export\ncolumns: [Artikel, Bilder]\n"
        "settings: {image: Bilder, image_separator: '#', id: Artikel, label: Gruppe}\n"
    )
    (shop / "c.csv").write_text(
        table([["Artikel", "Bilder", "Gruppe"]] + [[k, "#".join(pics(k)), LABELS[k % 3]] for k in K])
    )
    catalog = read_catalog(CatalogSection(uri=str(shop / "c.csv"), format=str(shop / "ours.yaml")))
    check(catalog, has_products=True)
    # what is given by hand wins
    other = read_catalog(CatalogSection(uri=str(shop / "c.csv"), format=str(shop / "ours.yaml"), label="Artikel"))
    assert set(other.column("label")) == set(map(str, K))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: x\ncolumns: [Nichts]\nsettings: {}\n", "columns Nichts are missing"),
        ("title: x\ncolumns: [sku]\nsettings: {label_level: many}\n", "catalog.format = "),
        ("title: x\n", "catalog.format = "),
        ("- a\n", "title, columns"),
    ],
)
def test_a_layout_that_is_none_says_why(text, words, shop):
    (shop / "ours.yaml").write_text(text)
    (shop / "c.csv").write_text("sku,image\n1,pics/p00.png\n")
    with pytest.raises(Exception, match=words):
        read_catalog(CatalogSection(uri=str(shop / "c.csv"), format=str(shop / "ours.yaml")), needs_label=False)


def test_known_layouts_can_be_read():
    for layout in known_layouts().values():
        assert layout.title
        assert layout.columns
        CatalogSection(
            uri="x", **{name: value for name, value in layout.settings.items() if not isinstance(value, list)}
        )


def test_records_without_a_picture_are_counted_where_their_product_has_one(shop):
    rows = [["sku", "image", "label"], ["a", "", ""], ["a", "pics/p00.png", "Mugs"], ["b", "", ""], ["a", "", ""]]
    (shop / "c.csv").write_text(table(rows))
    catalog = read_catalog(CatalogSection(uri=str(shop / "c.csv"), group="sku", without_image="count"))
    assert catalog.column("group").tolist() == ["a", "b"]
    assert catalog.column("line").tolist() == [3, 4], "the product without any picture is an error row"
    counts = catalog.source.counts
    assert (counts.records, counts.with_pictures, counts.without_image, counts.pictures) == (4, 1, 3, 1)
    plain = read_catalog(CatalogSection(uri=str(shop / "c.csv"), group="sku"))
    assert plain.column("label").tolist() == ["", "Mugs", "", ""], "a group of a plain table may be anything"
    assert plain.source.counts.records == plain.source.counts.with_pictures + plain.source.counts.without_image == 4


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "bomb.xml",
            '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><a><item><image>&b;</image></item></a>',
            "not an XML feed",
        ),
        ("cut.xml", "<rss><channel><item><image>a.png</image>", "not an XML feed"),
        ("cut.json", '[{"image": "a.png"}, {"image"', "not JSON"),
        ("none.json", '{"a": 1,\n "b": [1, 2]}', "no list of objects"),
        ("cut.zip", b"PK\x03\x04nothing", "archive is damaged"),
        ("cut.tar", b"\0" * 100, "damaged"),
        ("cut.tar.gz", b"\x1f\x8bnothing", "damaged"),
        ("what.bin", bytes(range(256)) * 8, "no kind of table"),
        ("several.csv", "image\na.png\n" + "b.png\n" * 20_000 + '"c.png,d.png"\n', "set catalog.image_separator"),
    ],
)
def test_sources_that_cannot_be_read_say_why(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises((CatalogError, StorageError), match=words) as error:
        read_catalog(CatalogSection(uri=str(tmp_path / name)), needs_label=False)
    assert str(tmp_path / name) in str(error.value)


def test_names_that_leave_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(jpeg(1))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("../secret.png", jpeg(2))
        zipped.writestr("train.csv", "image\n../secret.png\n../../etc/passwd\n/etc/passwd\npics/no.png\n")
    catalog = read_catalog(CatalogSection(uri=str(tmp_path / "a.zip")), needs_label=False)
    denied = catalog.column("denied_reason").tolist()
    assert "leaves" in denied[0]
    assert "leaves" in denied[1]
    found = storage.fetch_many([catalog.column("uri")[3]])
    assert found[0].code == "not_found"


def test_a_file_that_unpacks_without_end_is_not_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("train.csv", "image\nlarge.png\n")
        with zipped.open("large.png", "w", force_zip64=True) as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
    [data] = storage.fetch_many([f"{path}!/large.png"], storage.Access(max_bytes=1 << 20))
    assert data.code == "too_many_bytes"


def test_columns_are_named_where_nothing_fits(tmp_path):
    (tmp_path / "c.csv").write_text("sku,foto,art\n1,x/1.jpg,Mugs\n")
    with pytest.raises(CatalogError) as error:
        read_catalog(CatalogSection(uri=str(tmp_path / "c.csv")))
    for words in ("sku = '1'", "foto = 'x/1.jpg'", "--catalog.image foto", "--catalog.label"):
        assert words in str(error.value)


def test_image_columns_are_found_by_pattern_and_by_path(tmp_path):
    (tmp_path / "c.csv").write_text("sku,Image 1,Image 2,label\n1,a.png,b.png,x\n2,c.png,,y\n")
    catalog = read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), image="Image *", id="sku"))
    assert catalog.column("id").tolist() == ["1", "1/1", "2"]
    assert [Path(uri).name for uri in catalog.column("uri")] == ["a.png", "b.png", "c.png"]


def test_ids_stay_when_a_second_picture_comes(tmp_path):
    """Kind of fault: corrections and drift lose a row whose id changes from one night to the next."""
    before, after = "sku,image,label\n1,a.png,x\n2,b.png,y\n", 'sku,image,label\n1,"a.png,c.png",x\n2,b.png,y\n'
    for settings, expected in (
        ({"id": "sku"}, ["1", "2"]),
        ({"group": "sku"}, ["a.png", "b.png"]),
        ({}, ["a.png", "b.png"]),
    ):
        found = []
        for text in (before, after):
            (tmp_path / "c.csv").write_text(text)
            found.append(read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), **settings)).column("id").tolist())
        assert found[0] == expected
        assert [one for one in found[1] if one in expected] == expected
        assert len(set(found[1])) == 3


def test_without_a_layout_a_cell_is_one_address(tmp_path):
    (tmp_path / "c.csv").write_text('image,label\n"red.jpg,blue.jpg",x\n')
    catalog = read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), format="none"))
    assert catalog.column("image").tolist() == ["red.jpg,blue.jpg"]


def test_a_label_on_a_record_without_a_picture_holds_for_its_product(shop):
    text = table([["Handle", "Title", "Image Src", "Type"], ["a", "A", "", "Mugs"], ["a", "", "pics/p00.png", ""]])
    (shop / "e.csv").write_text(text)
    catalog = read_catalog(CatalogSection(uri=str(shop / "e.csv")))
    assert catalog.column("label").tolist() == ["Mugs"]


def test_rows_without_a_picture_take_no_id_of_another(shop):
    text = table([["Handle", "Title", "Image Src", "Type"], ["a", "A", "", "x"], ["a", "", "pics/p00.png", ""]])
    (shop / "e.csv").write_text(text)
    catalog = read_catalog(CatalogSection(uri=str(shop / "e.csv"), without_image="error"))
    assert catalog.column("id").tolist() == ["e.csv:2", "a/0"]


@pytest.mark.parametrize("extra", ["shop-1.0/README.txt", "shop-1.0/Mugs/0.txt", "shop-1.0/names.json"])
def test_class_folders_in_an_archive_are_no_shard(extra, tmp_path):
    """Kind of fault: a text beside the pictures makes samples of them, and the labels of the folders are lost."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for number in range(24):
            zipped.writestr(f"shop-1.0/{LABELS[number // 3 % 3]}/{number}.png", jpeg(number))
        zipped.writestr(extra, '["mug"]')
    if extra.endswith(".json"):
        with pytest.raises(CatalogError, match="no list of objects"):
            read_catalog(CatalogSection(uri=str(tmp_path / "a.zip")))
        return
    check(read_catalog(CatalogSection(uri=str(tmp_path / "a.zip"))), has_products=False)


@pytest.mark.parametrize("extra", ["names.json", "page.xml", "extra.tar"])
def test_class_folders_beside_other_files_stay_class_folders(extra, tmp_path):
    for number in range(24):
        path = tmp_path / "shop" / LABELS[number // 3 % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    if extra == "extra.tar":
        with tarfile.open(tmp_path / "shop/extra.tar", "w") as tar:
            for name, data in (("0.png", jpeg(0)), ("0.cls", b"1")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        (tmp_path / "shop" / extra).write_text('["mug", "cup"]' if extra == "names.json" else "<html><p></html>")
    check(read_catalog(CatalogSection(uri=str(tmp_path / "shop"))), has_products=False)


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_samples_of_shards_keep_their_own_names_and_pictures(tmp_path):
    """Kinds of fault: shards whose names differ after a dot or in their folder, JSON that has an image of its own,
    samples without a picture that is read."""
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        for at in ("data.000", "data.001"):
            facts = json.dumps({"image": "foo.jpg", "key": "k"}).encode()
            shard(
                tmp_path / folder / f"{at}.tar",
                [("0.png", jpeg(1)), ("0.json", facts), ("0.cls", b"7"), ("1.jxl", b"x"), ("1.cls", b"7")],
            )
    catalog = read_catalog(CatalogSection(uri=str(tmp_path)))
    ids = catalog.column("id").tolist()
    assert len(set(ids)) == len(ids) == 8
    assert "test/data.001/0" in ids
    assert catalog.column("split").tolist() == ["test"] * 4 + ["train"] * 4
    uris = [uri for uri in catalog.column("uri").tolist() if uri]
    assert len(uris) == 4
    assert all(isinstance(data, bytes) for data in storage.fetch_many(uris))
    counts = catalog.source.counts
    assert (counts.records, counts.with_pictures, counts.without_image) == (8, 4, 4)


def test_documents_with_several_lists_and_depths_are_read_whole(shop):
    rows = one_by_one(lambda path, label, n: {"image": path, "label": label})
    (shop / "d.json").write_text(json.dumps({"licenses": [{"id": 1}], "train": rows[:20], "test": rows[20:]}, indent=1))
    check(read_catalog(CatalogSection(uri=str(shop / "d.json"))), has_products=False)
    items = [f"<product><image>{row['image']}</image><label>{row['label']}</label></product>" for row in rows]
    (shop / "d.xml").write_text(f"<all><category>{''.join(items[:5])}</category>{''.join(items[5:])}</all>")
    check(read_catalog(CatalogSection(uri=str(shop / "d.xml"))), has_products=False)


def test_splits_of_folders_within_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for split in ("train", "test"):
            zipped.writestr(f"{split}/a.csv", "image,label\na.png,x\n")
            zipped.writestr(f"{split}/a.png", jpeg(1))
    catalog = read_catalog(CatalogSection(uri=str(tmp_path / "a.zip")))
    assert sorted(catalog.column("split")) == ["test", "train"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": "a,othr"}, "catalog.image = 'othr'"),
        ({"image": "a", "group": "sku.x"}, "has no nested values"),
        ({"image": "[a]"}, "catalog.image = '\\[a\\]'"),
    ],
)
def test_columns_that_are_misspelt_are_named(settings, words, tmp_path):
    """Kind of fault: one of several columns is left out without a word."""
    (tmp_path / "c.csv").write_text("sku,a,other,label\n1,a.png,b.png,x\n")
    with pytest.raises(CatalogError, match=words):
        read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), **settings))


def test_a_whole_config_is_recognised_as_a_short_one(shop):
    (shop / "e.csv").write_text(table([["Handle", "Title", "Image Src", "Type"], ["a", "A", "pics/p00.png", "Mugs"]]))
    section = CatalogSection(uri=str(shop / "e.csv"))
    whole = read_catalog(CatalogSection(**section.model_dump()))
    assert whole.column("id").tolist() == read_catalog(section).column("id").tolist() == ["a/0"]


def test_archives_are_guarded_as_files_are(tmp_path):
    """Kind of fault: what lies in an archive is read past the rules for links, hosts and memory."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "out/secret.zip", "w") as zipped:
        zipped.writestr("a.png", jpeg(1))
    (tmp_path / "shop/link.zip").symlink_to(tmp_path / "out/secret.zip")
    access = storage.Access(allowed=(str(tmp_path / "shop"),))
    web, link = storage.fetch_many(["http://shop.example/a.zip!/a.png", f"{tmp_path}/shop/link.zip!/a.png"], access)
    assert (web.code, link.code) == ("not_allowed", "not_allowed")
    with zipfile.ZipFile(tmp_path / "shop/large.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(12):
            zipped.writestr(f"{number}.bin", bytes(30 << 20))
    groups = list(storage.fetch_groups([f"{tmp_path}/shop/large.zip!/{number}.bin" for number in range(12)], access))
    assert max(sum(len(data) for data in group.values()) for group in groups) <= (128 + 30) << 20
    assert sum(len(group) for group in groups) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delimiter": ",", "image": "path"}, "set catalog.delimiter to whitespace"),
        ({"delimiter": ";", "image": "path"}, "set catalog.delimiter to whitespace"),
        ({}, "Try --catalog.image path"),
    ],
)
def test_a_wrong_delimiter_is_what_the_error_speaks_of(settings, words, tmp_path):
    (tmp_path / "train.txt").write_text("id path\n1 pics/1.jpg\n2 pics/2.jpg\n")
    with pytest.raises(CatalogError) as error:
        read_catalog(CatalogSection(uri=str(tmp_path / "train.txt"), **settings))
    assert words in str(error.value)
    assert ("Try --catalog.image" in str(error.value)) is not bool(settings)


def test_pictures_without_folders_have_no_labels_and_that_is_said(tmp_path, capsys):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.png").write_bytes(jpeg(1))
    read_catalog(CatalogSection(uri=str(tmp_path / "pics")))
    assert "have no labels" in capsys.readouterr().out
