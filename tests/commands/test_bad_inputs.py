"""Broken and hostile rows and files, more than forty kinds: each has its code, the run goes on, reports escape all."""

import csv
import io
import os
import struct
import zlib

import duckdb
import numpy as np
import pytest
from PIL import Image

from tests.commands.helpers import latest, read_json, read_text, words_of

pytestmark = pytest.mark.slow


def encoded(format, mode="RGB", size=(60, 50), **options):
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG whose header claims so many pixels, and that holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(10)), b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


JPEG, PNG = encoded("JPEG"), encoded("PNG")
# name of the file → (its bytes, the code of its error row; '' if it is scored)
FILES = {
    "empty.jpg": (b"", "empty_file"),
    "page.jpg": (b"<!doctype html><html><body>404</body></html>", "not_an_image"),
    "text.jpg": (b"no picture", "not_an_image"),
    "answer.jpg": (b'{"error": "expired"}', "not_an_image"),
    "access.jpg": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not_an_image"),
    "document.jpg": (b"%PDF-1.7 ...", "not_an_image"),
    "archive.jpg": (b"PK\x03\x04" + bytes(40), "not_an_image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    "program.jpg": (b"\x7fELF" + bytes(60), "not_an_image"),
    "zeros.jpg": (bytes(1000), "not_an_image"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "half.png": (PNG[: len(PNG) // 2], "truncated"),
    "half.gif": (encoded("GIF")[:200], "truncated"),
    "half.bmp": (encoded("BMP")[:200], "truncated"),
    "half.webp": (encoded("WEBP")[:200], "truncated"),
    "header.jpg": (JPEG[:20], "truncated"),
    "signature.png": (PNG[:8], "truncated"),
    "noise.jpg": (b"\xff\xd8\xff" + bytes(range(256)) * 4, "corrupt"),
    "checksum.png": (PNG[:30] + bytes([PNG[30] ^ 255]) + PNG[31:], "corrupt"),
    "bomb.png": (png_of_size(30_000, 30_000), "too_many_pixels"),
    "line.png": (png_of_size(5000, 2), "bad_aspect_ratio"),
    "nothing.png": (png_of_size(0, 10), "corrupt"),
    "grey.jpg": (encoded("JPEG", "L"), ""),
    "cmyk.jpg": (encoded("JPEG", "CMYK"), ""),
    "palette.png": (encoded("PNG", "P"), ""),
    "alpha.png": (encoded("PNG", "RGBA"), ""),
    "one-bit.png": (encoded("PNG", "1"), ""),
    "tiny.png": (encoded("PNG", size=(1, 1)), ""),
    "trailing.jpg": (JPEG + b"<script>more</script>", ""),
    "wrong-suffix.jpg": (PNG, ""),
    "no-suffix": (JPEG, ""),
    "with space.jpg": (JPEG, ""),
    "per%20cent.jpg": (JPEG, ""),
    "wild*?[card].jpg": (JPEG, ""),
    "hash#tag.jpg": (JPEG, ""),
    "größe-商品.jpg": (JPEG, ""),
    "empty.jpg::chain.jpg": (JPEG, ""),
    "=cmd|calc.jpg": (JPEG, ""),
    "<img src=x onerror=alert(1)>.jpg": (JPEG, ""),
}
# what the image column says → the code
ROWS = {
    "": "empty_path",
    "   ": "empty_path",
    "nowhere.jpg": "not_found",
    "folder": "not_found",
    "empty.jpg/inside.jpg": "not_found",
    "../outside.jpg": "not_allowed",
    "a/../../outside.jpg": "not_allowed",
    "gopher://old/1.jpg": "bad_address",
    "simplecache::file:///etc/hostname": "bad_address",
    "loop.jpg": "bad_address",
    "pipe.jpg": "bad_address",
    "/dev/zero": "bad_address",
    "x" * 100_000 + ".jpg": "bad_address",
    "http://127.0.0.1:9/1.jpg": "not_allowed",
    "http://169.254.169.254/latest/meta-data/": "not_allowed",
    "/etc/hostname": "not_an_image",
    "file:///etc/hostname?": "not_found",
}
HOSTILE = ["=HYPERLINK(1)", "<script>alert(1)</script>", "nan", "", "x" * 100_000, "a\nb", '"', "NULL"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    (folder.parent / "outside.jpg").write_bytes(JPEG)
    os.symlink(folder / "loop.jpg", folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    images = [*FILES, *ROWS, "grey.jpg"]  # the last is there already
    with (folder / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "title"])
        for number, image in enumerate(images):
            writer.writerow([image, HOSTILE[number % len(HOSTILE)], HOSTILE[-1 - number % len(HOSTILE)]])
    return folder, images


@pytest.fixture(scope="module")
def scored(corpus, small_bundle, tmp_path_factory):
    from retailray.cli import main

    out = tmp_path_factory.mktemp("out")
    settings = {"catalog.uri": corpus[0] / "catalog.csv", "model.uri": small_bundle[0], "score.max_error_rate": 1}
    settings |= {"out": out, "score.dedupe": "false"}
    assert main(words_of("score", settings)) == 0
    return latest(str(out))


def test_every_kind_has_its_code_and_nothing_is_lost(corpus, scored):
    assert len(FILES) + len(ROWS) > 50
    errors = duckdb.sql(f"select image, error_code from '{scored}/errors/*.parquet'").df()
    predictions = duckdb.sql(f"from '{scored}/predictions/*.parquet'").df()
    assert len(errors) + len(predictions) == len(corpus[1])
    found = dict(zip(errors.image, errors.error_code, strict=True)) | dict.fromkeys(predictions.image, "")
    assert errors.error_code[errors.image == "grey.jpg"].tolist() == ["duplicate_id"]
    wanted = {name: code for name, (_, code) in FILES.items()} | ROWS
    assert {name: code for name, code in found.items() if wanted[name] != code} == {}
    counts = read_json(f"{scored}/run.json")["counts"]
    assert (counts["rows"], counts["failed"]) == (len(corpus[1]), len(errors))


def test_the_users_columns_come_through_as_they_were(corpus, scored):
    predictions = duckdb.sql(f"from '{scored}/predictions/*.parquet'").df().set_index("image")
    for number, image in enumerate(corpus[1][:-1]):
        if image in predictions.index:
            assert predictions.label[image] == HOSTILE[number % len(HOSTILE)]


def test_the_report_escapes_what_people_wrote(scored):
    page = read_text(f"{scored}/report.html")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert len(page) < 3_000_000, "long names are cut"


def test_only_allowed_addresses_are_read(corpus, small_bundle, retailray, tmp_path):
    (tmp_path / "c.csv").write_text(
        f"image\n{corpus[0]}/grey.jpg\n/etc/hostname\nfile:///etc/hostname\nhttp://x/y.jpg\n"
        f"{corpus[0]}/../outside.jpg\nlocal://{corpus[0]}/../outside.jpg\n"
    )
    settings = {"catalog.uri": tmp_path / "c.csv", "model.uri": small_bundle[0], "score.max_error_rate": 1}
    settings |= {"catalog.allow": f'["{corpus[0]}/"]', "out": tmp_path / "out"}
    assert retailray("score", **settings)[0] == 0
    errors = duckdb.sql(f"select * from '{latest(str(tmp_path / 'out'))}/errors/*.parquet' order by image").df()
    assert errors.error_code.tolist() == ["not_allowed"] * 5
    assert "catalog.allow" in errors.message[0]


@pytest.mark.s3
def test_a_catalog_in_a_store_reads_no_files_of_the_machine(small_bundle, retailray, bucket, tmp_path):
    import s3fs

    with s3fs.S3FileSystem().open(f"{bucket}/c.csv", "w") as file:
        file.write("image\n/etc/hostname\nfile:///etc/hostname\n../../other/1.jpg\nlocal:///etc/hostname\n")
    settings = {"catalog.uri": f"{bucket}/c.csv", "model.uri": small_bundle[0], "out": tmp_path}
    assert retailray("score", **settings)[0] == 3
    errors = duckdb.sql(f"select * from '{latest(str(tmp_path))}/errors/*.parquet' order by image").df()
    assert errors.error_code.tolist() == ["not_allowed"] * 4
