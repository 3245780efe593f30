"""Folders with many files beside the catalog's images: check.json and run.json name those that were not listed."""

from pathlib import Path

import pandas as pd
import pytest
import s3fs

from retailray.data import listing
from tests.commands.helpers import events, latest, read_json

pytestmark = pytest.mark.s3


@pytest.fixture
def crowded(bucket, small_catalog, tmp_path):
    """Ten pictures among sixty other objects, and their table."""
    names = sorted(path.name for path in Path(small_catalog[0], "images").glob("*.jpg"))[:10]
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    for name in names:
        fs.put(f"{small_catalog[0]}/images/{name}", f"{bucket}/shop/{name}")
    fs.pipe({f"{bucket}/shop/log-{number}": b"x" for number in range(60)})
    table = tmp_path / "table.csv"
    pd.DataFrame({"image": [f"{bucket}/shop/{name}" for name in names], "label": "mug"}).to_csv(table, index=False)
    return table, f"{bucket}/shop"


def test_what_was_not_listed_is_in_the_run(crowded, small_bundle, retailray, monkeypatch, tmp_path):
    monkeypatch.setattr(listing, "MAX_FREE", 20)
    monkeypatch.setattr(listing, "MAX_RATIO", 1)
    table, folder = crowded
    code, out, err = retailray("check", **{"catalog.uri": table, "out": tmp_path / "check"})
    assert code == 0, err
    assert read_json(f"{latest(str(tmp_path / 'check'))}/check.json")["not_listed"] == [folder]
    assert [event["not_listed"] for event in events(out) if "not_listed" in event] == [folder]
    settings = {"catalog.uri": table, "model.uri": small_bundle[0], "out": tmp_path / "score"}
    code, out, err = retailray("score", **settings)
    assert code == 0, err
    facts = read_json(f"{latest(str(tmp_path / 'score'))}/run.json")
    assert facts["not_listed"] == [{"folder": folder, "objects": 70, "images": 10}]
    assert facts["counts"]["scored"] == 10
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    facts = read_json(f"{latest(str(tmp_path / 'score'))}/run.json")
    assert facts["plan"]["images"] == 0, "asked for one by one, their contents are known all the same"
