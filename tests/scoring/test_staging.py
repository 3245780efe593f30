"""The catalog on the driver's disk: the user's columns come out as they went in."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailray.config import CatalogSection
from retailray.errors import CatalogError
from retailray.scoring.staging import stage_catalog


def staged(folder):
    (folder / "work").mkdir()
    return stage_catalog(CatalogSection(uri=str(folder / "shop")), folder / "work", reserved=())


def test_types_are_learnt_for_text_and_kept_where_a_file_has_them(tmp_path):
    """A column that is numbers in the CSV file is text in the Parquet file, zeros in front and all."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/a.csv").write_text("image,price,ean\n1.jpg,7,x\n")
    pq.write_table(pa.table({"image": ["2.jpg"], "price": [8], "ean": ["00012"]}), tmp_path / "shop/b.parquet")
    (tmp_path / "shop/c.csv").write_text("image,price,ean\n3.jpg,9,y\n")
    catalog = staged(tmp_path)
    rows = pa.concat_tables(catalog.input_pieces()).to_pylist()
    assert [(row["price"], row["ean"]) for row in rows] == [(7, "x"), (8, "00012"), (9, "y")]
    assert catalog.schema.field("price").type == pa.int64()


def test_files_that_disagree_on_a_type_are_refused_before_any_work(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/a.csv").write_text("image,ean\n1.jpg,12\n")
    pq.write_table(pa.table({"image": ["2.jpg"], "ean": ["00012"]}), tmp_path / "shop/b.parquet")
    with pytest.raises(CatalogError, match="disagree on column types"):
        staged(tmp_path)
