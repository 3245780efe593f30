import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog
from retailray.errors import CatalogError, StorageError
from retailray.scoring.staging import stage_catalog


def read(path, text=None, **settings):
    if text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    section = CatalogSection(uri=str(path), **settings)
    catalog = read_catalog(section)
    # a config that was saved resolved, as jobs and best.yaml have it, means the same
    assert read_catalog(CatalogSection.model_validate(section.model_dump())).rows.equals(catalog.rows)
    return catalog


def staged(path, **settings):
    """The user's own columns, as they are published."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = stage_catalog(CatalogSection(uri=str(path), **settings), Path(folder), reserved=())
        return pa.concat_tables(catalog.input_pieces())


def test_the_origin_articles_layout(tmp_path):
    catalog = read(
        tmp_path / "train.csv",
        "name,category\nimage1,0\nimage2,1\n",
        image="name",
        image_template="images/{stem}/{name}.jpeg",
        label="category",
        label_map={"0": "PC", "1": "PCbag"},
    )
    assert catalog.column("uri").tolist() == [f"{tmp_path}/images/train/image{n}.jpeg" for n in (1, 2)]
    assert catalog.column("label").tolist() == ["PC", "PCbag"]
    assert catalog.column("id").tolist() == ["images/train/image1.jpeg", "images/train/image2.jpeg"]
    assert catalog.column("line").tolist() == [2, 3]


def test_hugging_face_imagefolder_with_a_table_in_every_folder(tmp_path):
    for folder in ("train", "test"):
        path = tmp_path / folder / "metadata.csv"
        path.parent.mkdir()
        path.write_text("file_name,label\n0001.png,mug\n")
    catalog = read(tmp_path)
    assert sorted(catalog.column("uri")) == [f"{tmp_path}/test/0001.png", f"{tmp_path}/train/0001.png"]
    assert sorted(catalog.column("id")) == ["test/0001.png", "train/0001.png"]
    assert catalog.column("split").tolist() == ["test", "train"]


def test_class_folders(tmp_path):
    for name in ("mug/a.jpg", "mug/b.PNG", "lamp/deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    catalog = read(tmp_path, label_map={"deep": "lamp"})
    assert dict(zip(catalog.column("id"), catalog.column("label"), strict=True)) == {
        "lamp/deep/c.webp": "lamp",
        "mug/a.jpg": "mug",
        "mug/b.PNG": "mug",
    }
    with pytest.raises(CatalogError, match=r"catalog\.label would be ignored"):
        read(tmp_path, label="kind")


def test_absolute_relative_and_uri_paths(tmp_path):
    catalog = read(
        tmp_path / "c.csv",
        "image,label\n./a/../b.jpg,x\n/abs/c.jpg,x\ns3a://bucket/k/d.jpg,x\n,x\n",
        root="s3://shop/photos",
    )
    assert catalog.column("uri").tolist() == [
        "s3://shop/photos/b.jpg",
        "/abs/c.jpg",
        "s3://bucket/k/d.jpg",
        "",
    ]


def test_other_columns_pass_through_with_their_types(tmp_path):
    frame = pd.DataFrame(
        {
            "image": ["a", "b"],
            "label": [0, 1],
            "price": [1.5, 2.0],
            "tags": [["x"], []],
            "day": pd.to_datetime(["2024-01-02"] * 2),
        }
    )
    frame.to_parquet(tmp_path / "c.parquet")
    table = staged(tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(table.select(["price", "day"]).to_pandas(), frame[["price", "day"]])
    assert table.column("tags").to_pylist() == [["x"], []]
    assert read(tmp_path / "c.parquet").column("label").tolist() == ["0", "1"]


def test_ids_keep_their_zeros_and_repeats_are_found(tmp_path):
    catalog = read(tmp_path / "c.csv", "sku,image,label\n007,a,x\n8,b,x\n007,c,x\n", id="sku")
    assert catalog.column("id").tolist() == ["007", "8", "007"]
    assert staged(tmp_path / "c.csv", id="sku").column("sku").to_pylist() == ["007", "8", "007"]
    assert catalog.column("repeated").tolist() == [False, False, True]


def test_rows_without_id_or_product_are_not_one_product(tmp_path):
    text = "sku,product,image,label\n1,p,a,x\n,,b,x\n,,c,x\n2,p,d,x\n"
    catalog = read(tmp_path / "c.csv", text, id="sku", group="product")
    assert catalog.column("id").tolist() == ["1", "b", "c", "2"]
    assert catalog.column("group").tolist() == ["p", "b", "c", "p"]
    assert not catalog.column("repeated").any()


def test_what_our_runs_left_in_the_folder_is_not_the_catalog(tmp_path):
    for name in ("mug/a.jpg", "out/run_id=1/curves.png", "out/run_id=1/images.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert read(tmp_path).column("id").tolist() == ["mug/a.jpg"]


def test_patterns_and_folders_of_parts(tmp_path):
    for number in range(2):
        (tmp_path / f"part-{number}.csv").write_text(f"image,label,n\n{number},x,{number or ''}\n")
    for name in ("_notes.csv", ".ipynb_checkpoints/part-0.csv", "_temporary/0/part-1.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not,ours\n1,2\n")
    assert len(read(tmp_path / "part-*.csv")) == 2
    assert staged(tmp_path).column("n").to_pylist() == [None, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["catalog.image = 'image'", "images"]),
        ({"image": "images", "label": "labl"}, ["catalog.label", "did you mean 'label'"]),
        (
            {"image": "images", "image_template": "{nam}.jpg"},
            ["catalog.image_template", "'nam'", "did you mean 'name'"],
        ),
        ({"image": "images", "image_template": "{"}, ["catalog.image_template"]),
        ({"image": "images", "image_template": "{name:05d}.jpg"}, ["catalog.image_template", "{name:05d}"]),
        ({"image": "images", "split": "part"}, ["line 3", "'holdout'", "validation"]),
    ],
)
def test_wrong_settings_say_which(tmp_path, settings, words):
    with pytest.raises(CatalogError) as caught:
        read(tmp_path / "c.csv", "images,label,name,part\na,x,n,train\nb,y,n,holdout\n", **settings)
    for word in words:
        assert word in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(StorageError, match="not found"):
        read(tmp_path / "nope.csv")
    with pytest.raises(CatalogError, match="contains neither a table nor images"):
        read(tmp_path)


@pytest.mark.slow
def test_one_long_id_costs_its_own_length_and_not_that_of_all_rows(tmp_path):
    """Kind of fault: texts of fixed width, of which every row takes as much as the longest (8 GB here)."""
    lines = [f"{row}.png,label {row % 7}" for row in range(20_000)]
    lines[777] = "x" * 100_000 + ".png,label 3"
    (tmp_path / "c.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    code = f"""
import resource
from retailray.config import CatalogSection, CheckSection, SplitSection
from retailray.data.decoding import transport_table
from retailray.data.splits import read_splits
import numpy as np, pyarrow as pa
from retailray.quality.findings import find_problems
from retailray.data.catalog import count_labels
from retailray.quality.check import _frame
from retailray.quality.scan import FACTS
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
splits = read_splits(CatalogSection(uri={str(tmp_path / "c.csv")!r}), SplitSection(test=0.2))
table = pa.concat_tables([transport_table(part) for part in splits.values()])
for field in FACTS:
    table = table.append_column(field.name, pa.nulls(len(table), field.type))
scan = _frame(splits, table)
labels = count_labels(scan.label.to_numpy())
find_problems(scan, labels, orphans=[], unread={{}}, class_folders=False, section=CheckSection())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300, "MB"
