"""Corrections: the last word on an item holds, whoever's file it is in."""

import hashlib

import pytest

from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog
from retailray.data.corrections import read_corrections
from retailray.errors import CatalogError, StorageError


def said(folder):
    return {row["item_id"]: row for row in read_corrections(str(folder)).to_pylist()}


def test_the_last_word_holds(tmp_path):
    (tmp_path / "b.csv").write_text(
        "item_id,label,reviewer,reviewed_at,sha256\n"
        '"a,1",mug,ann,2026-01-02T00:00:00Z,abc\nb,cup,ann,2026-01-01T00:00:00Z,\nb,,ann,2026-02-01T00:00:00Z,\n'
    )
    (tmp_path / "z.csv").write_text(  # Label Studio's export: its own id, annotator and updated_at
        "image,item_id,id,label,annotator,annotation_id,created_at,updated_at,lead_time\n"
        's3://b/a.jpg,"a,1",7,plate,3,9,2026-01-01T00:00:00Z,2026-01-01T10:00:00Z,2.5\n'
        "s3://b/b.jpg,b,8,bowl,3,10,2026-01-01T00:00:00Z,2026-01-03T10:00:00Z,1.5\n"
    )
    found = said(tmp_path)
    assert {name: (row["label"], row["reviewer"]) for name, row in found.items()} == {
        "a,1": ("mug", "ann"),
        "b": ("bowl", "3"),
    }
    assert (found["a,1"]["sha256"], found["b"]["sha256"]) == ("abc", "")
    assert found["b"]["file"].endswith("z.csv")


def test_times_are_compared_as_times(tmp_path, capsys):
    (tmp_path / "c.csv").write_text(
        "item_id,label,reviewed_at\n"
        "a,mug,2026-01-02T01:00:00+02:00\na,cup,2026-01-01T23:30:00Z\n"  # the second is later
        "b,mug,2026-01-01 10:00:00.5\nb,cup,2026-01-01T10:00:00Z\n"
        "c,mug,2026-01-01\nc,cup,yesterday\nc,plate,now\nc,bowl,\n"
    )
    assert {name: row["label"] for name, row in said(tmp_path).items()} == {"a": "cup", "b": "mug", "c": "mug"}
    assert "'yesterday' is no ISO 8601 time (2 rows)" in capsys.readouterr().out


def test_a_folder_may_be_empty_and_a_page_may_have_said_nothing(tmp_path):
    assert said(tmp_path) == {}
    (tmp_path / "c.csv").write_text("item_id,label\n")
    assert said(tmp_path) == {}


def test_what_is_no_table_of_corrections_is_refused_by_name(tmp_path):
    (tmp_path / "c.csv").write_text("id,label\n1,mug\n")
    with pytest.raises(CatalogError, match=r"c\.csv: corrections need the columns item_id and label; it has id, label"):
        read_corrections(str(tmp_path / "c.csv"))
    with pytest.raises(StorageError, match=r"none\.csv"):
        read_corrections(str(tmp_path / "none.csv"))


def test_labels_of_a_catalog_are_what_people_said(tmp_path):
    (tmp_path / "c.csv").write_text("image,label\na.jpg,cup\nb.jpg,cup\n")
    (tmp_path / "said.csv").write_text("item_id,label\nb.jpg,mug\nelsewhere.jpg,plate\n")
    section = CatalogSection(uri=str(tmp_path / "c.csv"), corrections=str(tmp_path / "said.csv"))
    assert read_catalog(section).column("label").tolist() == ["cup", "mug"]


def test_corrections_of_no_row_are_told(tmp_path, capsys):
    """Kind of fault: a reviewer's day is lost without a word, since catalog.id is another column than it was."""
    (tmp_path / "c.csv").write_text("image,label\na.jpg,cup\nb.jpg,cup\n")
    (tmp_path / "said.csv").write_text("item_id,label\n1017,mug\n1018,mug\n")
    read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), corrections=str(tmp_path / "said.csv")))
    [warning] = [line for line in capsys.readouterr().out.splitlines() if '"warning"' in line]
    assert "none of 2 corrections names a row of the catalog (the first one: '1017')" in warning


def test_what_was_said_of_another_picture_does_not_hold(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"now")
    (tmp_path / "c.csv").write_text("image,label\na.jpg,cup\nb.jpg,cup\n")
    digests = [hashlib.sha256(data).hexdigest() for data in (b"before", b"now")]
    for digest, label in zip(digests, ("cup", "mug"), strict=True):
        # b.jpg is not there: nobody can tell, and its word holds
        (tmp_path / "said.csv").write_text(f"item_id,label,sha256\na.jpg,mug,{digest}\nb.jpg,mug,{digest}\n")
        section = CatalogSection(uri=str(tmp_path / "c.csv"), corrections=str(tmp_path / "said.csv"))
        assert read_catalog(section).column("label").tolist() == [label, "mug"]


def test_a_refused_image_is_not_read_and_a_column_that_is_no_text_is_named(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"now")
    (tmp_path / "shop/c.csv").write_text("image,label\n../secret.jpg,cup\n")
    (tmp_path / "said.csv").write_text("item_id,label,sha256\n../secret.jpg,mug,of another\n")
    section = CatalogSection(uri=str(tmp_path / "shop/c.csv"), corrections=str(tmp_path / "said.csv"))
    assert read_catalog(section).column("label").tolist() == ["mug"], "unread, so nobody can tell"
    (tmp_path / "said.jsonl").write_text('{"item_id": "a", "label": ["mug"]}\n')
    with pytest.raises(CatalogError, match=r"said\.jsonl: column 'label' of corrections"):
        read_corrections(str(tmp_path / "said.jsonl"))
