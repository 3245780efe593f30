"""Small inputs from real reports (RETAILRAY_REAL_DATA/inputs), read as their README says is right. No Ray."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.catalog import read_catalog
from retailray.data.class_folders import unread_suffixes
from retailray.data.images import Limits, decode, whole
from retailray.data.scaling import Scaling
from retailray.data.tables import stream_records
from retailray.errors import CatalogError, ImageError
from tests.conftest import free_port

pytestmark = pytest.mark.real
LIMITS = Limits(50_000_000, 20)


@pytest.fixture
def inputs(real_data, tmp_path):
    """A copy, so that a test may change it."""
    source = real_data[0].parent.parent / "inputs"
    return Path(shutil.copytree(source, tmp_path / "inputs", symlinks=True))


def outcomes(catalog, access=None):
    """'ok' or the error code and its message for every row."""
    found = []
    for data in storage.fetch_many(catalog.column("uri").tolist(), access or storage.Access()):
        try:
            if isinstance(data, ImageError):
                raise data
            decode(data, Scaling(32, 32), LIMITS)
            found.append("ok")
        except ImageError as error:
            found.append(f"{error.code}: {error.message}")
    return found


def read(uri, **settings):
    return read_catalog(CatalogSection(uri=str(uri), **settings))


@pytest.mark.parametrize("name", ["bom.csv", "sep.csv", "u16.csv"])
def test_csv_dialects(inputs, name):
    catalog = read(inputs / "csv-dialects" / name)
    assert len(catalog) == 20
    assert set(outcomes(catalog)) == {"ok"}
    assert sorted(set(catalog.column("label"))) == ["a", "b"]


def test_stray_quotes(inputs):
    with pytest.raises(CatalogError, match=r"line 2: .*catalog\.quoting"):
        read(inputs / "stray-quotes/catalog.csv")
    for name, settings in (("catalog.csv", {"quoting": "none"}), ("head.csv", {})):
        catalog = read(inputs / "stray-quotes" / name, **settings)
        assert len(catalog) == 20
        assert set(outcomes(catalog)) == {"ok"}


def test_suffixes_in_folders(inputs):
    folder = inputs / "suffixes-in-folders"
    (folder / "red/notes.txt").write_text("x")
    (folder / "red/raw.CR2").write_bytes(b"x")
    catalog = read(folder)
    assert len(catalog) == 12
    assert set(outcomes(catalog)) == {"ok"}
    assert unread_suffixes(CatalogSection(uri=str(folder))) == {".cr2": 1, ".txt": 1}


def test_equal_leaf_names(inputs, capfd):
    folder = inputs / "equal-leaf-names"
    labels = set(read(folder).column("label"))
    assert "folder_labels to path" in capfd.readouterr().out
    by_path = set(read(folder, folder_labels="path").column("label"))
    assert len(by_path) > len(labels)
    assert {"men/shoes", "women/shoes"} <= by_path
    assert capfd.readouterr().out == ""


def test_names_in_the_other_unicode_form(inputs):
    assert set(outcomes(read(inputs / "nfd-name/catalog.csv"))) == {"ok"}


def test_big_text_chunk(inputs):
    assert outcomes(read(inputs / "big-text-chunk/catalog.csv")) == ["ok"]


def test_avif_and_heic_by_another_name(inputs):
    catalog = read(inputs / "avif-heic-as-jpg/catalog.csv")
    found = dict(zip(catalog.column("image"), outcomes(catalog), strict=True))
    assert found["avif.jpg"] == "ok"
    assert "HEIC" in found["heic.jpg"] or "HEIF" in found["heic.jpg"]


def test_twelve_bits_are_as_bright_as_sixteen(inputs):
    folder = inputs / "twelve-bit"
    for kind in ("png", "tiff"):
        full, low = (
            whole((folder / f"{name}.{kind}").read_bytes(), side=64, limits=LIMITS) for name in ("full", "low")
        )
        assert len(np.unique(low)) > 200
        assert np.abs(full.astype(int) - low.astype(int)).max() <= 2


def test_headerless(inputs):
    with pytest.raises(CatalogError, match=r"no header.*catalog\.columns"):
        read(inputs / "headerless/catalog.csv")
    path = inputs / "headerless/catalog.csv"
    path.write_text(path.read_text().replace("UNASSIGNED", "TRAIN"))
    catalog = read(path, columns=["set", "image", "label"])
    assert len(catalog) == len(path.read_text().splitlines())
    assert set(outcomes(catalog)) == {"ok"}


def test_images_in_a_parquet_file(inputs):
    path = inputs / "embedded-images/catalog.parquet"
    table = pq.read_table(path)
    catalog = read(path)
    assert set(outcomes(catalog)) == {"ok"}
    assert not catalog.column("repeated").any()
    column = next(name for name in table.column_names if pa.types.is_struct(table.schema.field(name).type))
    expected = [row[column]["bytes"] for row in table.to_pylist()]
    assert storage.fetch_many(catalog.column("uri").tolist()) == expected
    binary = table.set_column(table.column_names.index(column), column, pa.array(expected, pa.binary()))
    pq.write_table(binary, path, row_group_size=3)
    assert storage.fetch_many(read(path).column("uri").tolist()) == expected


def test_ends_of_files(inputs):
    folder = inputs / "jpeg-end"
    found = {}
    for path in folder.iterdir():
        if path.suffix:
            found[path.name] = outcomes_of(path)
    assert {name for name, outcome in found.items() if outcome == "ok"} == {
        *("plain.jpg", "trunc1.jpg", "trunc2.jpg", "trunc1.png", "noiend.png", "trunc1.webp")
    }
    assert found["half.jpg"] == "truncated"


def outcomes_of(path):
    try:
        decode(path.read_bytes(), Scaling(32, 32), LIMITS)
        return "ok"
    except ImageError as error:
        return error.code


def test_labels_that_are_padded_or_in_another_case(inputs):
    path = inputs / "padded-labels/catalog.csv"
    assert len(set(read(path).column("label"))) == 6
    assert set(read(path, normalize_labels=True).column("label")) == {"a", "b"}
    assert set(read(path, normalize_labels=True, label_map={"a": "Mug"}).column("label")) == {"Mug", "b"}


def test_file_uris(inputs):
    path = inputs / "file-uris/catalog.csv"
    path.write_text(path.read_text().replace("FOLDER", str(path.parent)) + "file://another.host/x.png,a\n")
    found = outcomes(read(path))
    assert found[:3] == ["ok"] * 3
    assert found[3].startswith("bad_address")


def test_names_are_taken_as_written(tmp_path, bucket):
    """Kind of fault: a key is tidied up (blanks, ``//``) and then not found, or another one is read."""
    picture = tmp_path / "p.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    names = [" lead.png", "trail.png ", "a//b.png", "./c.png"]
    for name in names:
        storage.write_bytes(f"{bucket}/{name.removeprefix('./')}", picture.read_bytes())
    storage.write_bytes(f"{bucket}/c.csv", ("image\n" + "".join(f"{name}\n" for name in names)).encode())
    catalog = read_catalog(CatalogSection(uri=f"{bucket}/c.csv"), needs_label=False)
    assert catalog.column("uri").tolist() == [f"{bucket}/{name.removeprefix('./')}" for name in names]
    assert outcomes(catalog) == ["ok"] * 4
    for name in names[:2]:
        (tmp_path / name).write_bytes(picture.read_bytes())
    (tmp_path / "c.csv").write_text("image\n lead.png\ntrail.png \n  \n")
    assert outcomes(read_catalog(CatalogSection(uri=str(tmp_path / "c.csv")), needs_label=False)) == ["ok"] * 2


def test_links_in_class_folders_are_read_or_named(tmp_path):
    """Kind of fault: pictures behind a link are left out without a word."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shop/bag").mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "elsewhere/1.png")
    (tmp_path / "shop/mug").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "shop/bag/link.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "shop/bag/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "shop/mug/up").symlink_to(tmp_path / "shop")
    (tmp_path / "shop/cup").symlink_to(tmp_path / "shop/mug")
    (tmp_path / "shop/bag/_MG_0001.png").write_bytes((tmp_path / "elsewhere/1.png").read_bytes())
    catalog = read(tmp_path / "shop")
    found = dict(zip(catalog.column("id"), outcomes(catalog), strict=True))
    assert found["mug/1.png"] == found["bag/link.png"] == found["cup/1.png"] == found["bag/_MG_0001.png"] == "ok"
    assert found["bag/gone.png"].startswith("not_found")
    assert len(found) == 5, "and no folder within itself"


def test_corrections_are_renamed_as_labels_are(tmp_path):
    """Kind of fault: a label that was merged comes back in another spelling by a correction."""
    (tmp_path / "c.csv").write_text("image,label\na.png,Mug\nb.png,mug \nc.png,cup\n")
    (tmp_path / "said.csv").write_text("item_id,label\nc.png,Mug\n")
    catalog = read(tmp_path / "c.csv", normalize_labels=True, corrections=str(tmp_path / "said.csv"))
    assert catalog.column("label").tolist() == ["mug", "mug", "mug"]


def test_settings_of_csv_are_refused_for_other_tables(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "label": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(CatalogError, match=r"catalog\.quoting would be ignored"):
        read(tmp_path / "c.parquet", quoting="none")


def test_large_images_in_parquet_are_read_some_at_a_time(tmp_path):
    path = tmp_path / "c.parquet"
    blobs = [np.random.default_rng(row).bytes(2_000_000) for row in range(80)]
    pq.write_table(pa.table({"image": blobs}), path, row_group_size=80)
    sizes = [records.table.num_rows for records in stream_records(str(path), encoding="utf-8")]
    assert sum(sizes) == 80
    assert max(sizes) <= 40


def test_equal_paths_of_several_folders_and_keys_with_empty_segments_have_ids_of_their_own(tmp_path, bucket):
    for part in "pq":
        storage.write_bytes(f"{bucket}/{part}/c.csv", b"image,label\nd//b.png,x\nd/b.png,x\n")
    catalog = read_catalog(CatalogSection(uri=bucket))
    assert sorted(catalog.column("id")) == ["p/d//b.png", "p/d/b.png", "q/d//b.png", "q/d/b.png"]
    assert not catalog.column("repeated").any()


def test_findings_about_labels():
    from retailray.quality.findings import similar_labels, untrained_labels

    catalog = pd.DataFrame(
        {"label": ["hat", "mug", "lamp", "mug", ""], "split": ["validation", "train", "test", "test", "test"]}
    )
    assert untrained_labels(catalog.label, catalog.split) == {"hat": 1, "lamp": 1}
    assert similar_labels(["cafe\u0301", "caf\u00e9", "x"]) == [["cafe\u0301", "caf\u00e9"]]


def test_parquet_parts_that_differ_in_how_a_column_is_packed(tmp_path):
    """Kind of fault: a folder of parts by several writers is refused for types that hold the same values."""
    kinds = [
        pa.array(["a"]).dictionary_encode(),
        pa.array(["b"], pa.large_string()),
        pa.array(["c"]),
        pa.nulls(1),
    ]
    (tmp_path / "shop").mkdir()
    for number, kind in enumerate(kinds):
        table = pa.table({"image": pa.array([f"{number}.png"]).dictionary_encode(), "label": kind, "tag": kind})
        pq.write_table(table, tmp_path / f"shop/{number}.parquet")
    assert read(tmp_path / "shop").column("label").tolist() == ["a", "b", "c", ""]
    from retailray.scoring.staging import stage_catalog

    staged = stage_catalog(CatalogSection(uri=str(tmp_path / "shop")), tmp_path, reserved=())
    table = pa.concat_tables(staged.input_pieces())
    assert table.column("tag").to_pylist() == ["a", "b", "c", None]
    assert table.column("image").to_pylist() == [f"{number}.png" for number in range(4)]


@pytest.mark.slow  # a process of its own
def test_signed_addresses_and_other_answers_of_servers(inputs):
    """The server of the report; what it does not know it answers with 404."""
    port = free_port()
    folder = inputs / "signed-address"
    server = subprocess.Popen([sys.executable, str(folder / "httpd.py"), str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_until_it_listens(port)
        text = (folder / "catalog.csv").read_text().replace(":18733", f":{port}")
        (folder / "catalog.csv").write_text(text)
        section = CatalogSection(uri=str(folder / "catalog.csv"), allow=[f"http://127.0.0.1:{port}"])
        catalog = read_catalog(section)
        assert set(catalog.column("denied_reason")) - {""} != set(), "hosts that nobody allowed"
        found = dict(zip(catalog.column("image"), outcomes(catalog, access_of(section)), strict=True))
    finally:
        server.kill()
        server.wait()
    codes = {address.rpartition(f"{port}/")[2]: outcome.partition(":")[0] for address, outcome in found.items()}
    failed = {address: code for address, code in codes.items() if code != "ok"}
    assert failed.pop("http://127.0.0.1:9/refused.png") == "not_allowed"
    assert failed.pop("http://no-such-host.invalid/x.png") in ("fetch_failed", "not_allowed")
    assert failed == {"loop.png": "fetch_failed", "html200.png": "not_an_image", "gone.png": "not_found",
                      "410.png": "not_found", "403.png": "access_denied", "401.png": "access_denied",
                      "short.png": "fetch_failed"}  # fmt: skip
    assert len(codes) == 26


def wait_until_it_listens(port):
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the server does not listen")
