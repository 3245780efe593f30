"""What earlier runs left: told from files, without Ray."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailray.errors import StorageError
from retailray.scoring.formats import RESPELLED
from retailray.scoring.previous_run import last_published, read_parts


def write_run(out, name, *, scored=False, key="command", **summary):
    (out / name / ("scored" if scored else ".")).mkdir(parents=True)
    for file, text in (
        ("config.yaml", ""),
        ("run.json", json.dumps({key: "score", **summary})),
        ("_SUCCESS", ""),
    ):
        (out / name / file).write_text(text)


def test_the_last_run_is_the_one_that_latest_names_or_one_that_was_about_to_be(tmp_path):
    assert last_published(str(tmp_path)) is None
    write_run(tmp_path, "run_id=1", published=True)
    assert last_published(str(tmp_path)) is None, "complete, and nobody knows of it"
    (tmp_path / "LATEST").write_text("run_id=1\n")
    for name, kept in (("run_id=2", {"published": False, "scored": True}), ("run_id=0", {"published": True})):
        write_run(tmp_path, name, **kept)
        assert last_published(str(tmp_path))[0].endswith("run_id=1")
    write_run(tmp_path, "run_id=3", published=True, scored=True)
    assert last_published(str(tmp_path))[0].endswith("run_id=3")


@pytest.mark.parametrize("key", ["command", "verb"])
def test_runs_of_version_0_2_0_are_previous_runs(key, tmp_path):
    """Kind of fault: a new name in run.json makes a whole catalog be scored again."""
    write_run(tmp_path, "run_id=1", key=key, published=True)
    (tmp_path / "LATEST").write_text("run_id=1\n")
    assert last_published(str(tmp_path))[0].endswith("run_id=1")


def test_a_run_that_was_removed_is_none_and_one_that_cannot_be_read_is_an_error(tmp_path):
    """An outage of the store must not be taken for a first night."""
    (tmp_path / "LATEST").write_text("run_id=1")
    assert last_published(str(tmp_path)) is None
    (tmp_path / "run_id=1/run.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"run\.json"):
        last_published(str(tmp_path))


def test_addresses_of_earlier_ledgers_are_read_in_their_one_spelling(tmp_path, monkeypatch):
    """0.2.0 wrote what the catalog had, and its listing told another spelling."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    written = {
        "gcs://shop/a.jpg": "gs://shop/a.jpg",
        "abfs://shop/b.jpg": "az://shop/b.jpg",
        "abfss://shop@ours.dfs.core.windows.net/c.jpg": "az://shop/c.jpg",
        "s3n://shop/d.jpg": "s3://shop/d.jpg",
        "s3://shop/e.jpg": "s3://shop/e.jpg",
        "/shop/f.jpg": "/shop/f.jpg",
    }
    table = pa.table({"uri": list(written), "identity": [str(n) for n in range(len(written))]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    [found] = read_parts(str(tmp_path))
    assert found.column("uri").to_pylist() == list(written.values())
    assert found.column("identity").equals(table.column("identity"))
    assert found.schema.equals(table.schema)
    assert RESPELLED in found.schema.metadata
