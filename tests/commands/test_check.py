"""`check` on a made-up catalog whose faults are known, and on the rows people get wrong."""

import re

import pandas as pd
import pytest

from tests.commands.helpers import events, latest, read_json, read_text, words_of


@pytest.fixture(scope="module")
def checked(small_catalog, tmp_path_factory):
    from retailray.cli import main

    folder, planted = small_catalog
    out = str(tmp_path_factory.mktemp("check"))
    settings = {"catalog.uri": f"{folder}/catalog.csv", "catalog.group": "sku", "split.test": 0.3, "out": out}
    assert main(words_of("check", settings | {"catalog.max_pixels": 20_000_000})) == 0
    return latest(out), planted


def test_it_finds_what_was_planted_and_nothing_else(checked):
    run, planted = checked
    report = read_json(f"{run}/check.json")
    assert report["num_rows"] == planted["num_rows"]
    assert report["num_rows"] - report["num_images_ok"] == planted["num_broken"]
    assert report["num_exact_duplicates"] == planted["num_copies"]
    assert report["num_orphans"] == planted["num_orphans"]
    assert report["orphans"][0].endswith("images/orphan.jpg")
    assert report["num_missing"] == 2
    kinds = {
        "truncated",
        "empty_file",
        "not_an_image",
        "corrupt",
        "too_many_pixels",
        "bad_aspect_ratio",
        "not_found",
    }
    assert report["errors_by_code"] == dict.fromkeys(kinds, 2)
    assert sum(report["labels"].values()) == planted["num_rows"]
    assert set(report["formats"]) == {"JPEG", "PNG", "WEBP", "GIF"}
    assert sum(report["splits"].values()) == planted["num_rows"]
    assert not {"duplicate_ids", "empty_labels", "similar_labels"} & {f["name"] for f in report["findings"]}


def test_every_row_is_in_the_tables_once(checked, small_catalog):
    run, _ = checked
    rows = pd.read_parquet(f"{run}/images.parquet")
    catalog = pd.read_csv(small_catalog[0] / "catalog.csv")
    assert sorted(rows.image) == sorted(catalog.image)
    errors = pd.read_parquet(f"{run}/errors")
    assert list(errors.columns) == ["id", "image", "stage", "error_code", "message"]
    named = errors.image.str.extract(r"broken_(.*)_\d")[0]
    assert (named == errors.error_code).all()
    assert set(errors.stage) == {"fetch", "decode"}


def test_the_record_names_this_machine(checked):
    out, _ = checked
    (machine,) = read_json(f"{out}/run.json")["made_by"]["machines"]
    assert machine["count"] == 1
    assert machine["cpus"] > 0


def test_the_report_is_whole_and_escapes(checked):
    run, _ = checked
    page = read_text(f"{run}/report.html")
    assert page.count("<img") > 40
    assert not re.search(r"(src|href)=.?https?:|url\(.?http", page), "nothing of it comes from elsewhere"
    assert "https://" not in page
    assert "it seems to be an HTML page" in page, "and not its bytes"


def test_rows_that_people_get_wrong(retailray, small_catalog, tmp_path):
    good = f"{small_catalog[0]}/images/00000_0"
    picture = next(path for path in (small_catalog[0] / "images").iterdir() if str(path).startswith(good))
    table = tmp_path / "c.csv"
    table.write_text(
        "sku,image,label\n"
        f"1,{picture},Mug\n1,{picture},mug\n2,,mug\n3,{picture},\n4,gopher://x/y.jpg,Lamp\n5,nope.jpg,<b>evil</b>\n"
    )
    code, out, err = retailray(
        "check",
        **{
            "catalog.uri": table,
            "catalog.id": "sku",
            "out": tmp_path / "o",
            "check.fail_on": "duplicate_ids,missing",
        },
    )
    assert code == 4
    assert "duplicate_ids (1), " in err or "missing (1), " in err
    assert "\n" not in err.strip()
    run = latest(str(tmp_path / "o"))
    report = read_json(f"{run}/check.json")
    assert report["errors_by_code"] == {"duplicate_id": 1, "empty_path": 1, "bad_address": 1, "not_found": 1}
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["empty_labels"]["count"] == 1
    assert "line 5" in found["empty_labels"]["examples"][0]
    assert found["similar_labels"]["examples"] == ["'Mug' / 'mug'"]
    assert found["small_classes"]["count"] == 4
    assert "line 3" in found["duplicate_ids"]["examples"][0]
    assert "<b>evil" not in read_text(f"{run}/report.html")
    assert events(out)[-1]["rows"] == 6


def test_a_catalog_without_labels_is_fine(retailray, small_catalog, tmp_path):
    table = tmp_path / "c.csv"
    table.write_text("image\nnope.jpg\n")
    code, _, _ = retailray("check", **{"catalog.uri": table, "out": tmp_path / "o"})
    assert code == 0
    code, _, err = retailray("check", **{"catalog.uri": table, "catalog.label": "kind", "out": tmp_path / "o"})
    assert code == 1
    assert "catalog.label = 'kind'" in err
