import gzip

import pandas as pd
import pyarrow as pa
import pytest

from retailray.data.tables import as_text, read_table, with_lossless_types
from retailray.errors import CatalogError


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def test_csv_columns_get_types_only_where_nothing_is_lost(tmp_path):
    text = "image,zip,price,count,mixed,empty,long,sku\na,01234,1.5,3,1,,1234567890123456789,12E4\nb,99999,2,,x,,2,3\n"
    path = write(tmp_path, "a.csv", text)
    table = with_lossless_types(read_table(path, encoding="utf-8"), keep_text=["image"])
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "image": "string",
        "zip": "string",
        "price": "double",
        "count": "int64",
        "mixed": "string",
        "empty": "string",
        "long": "string",
        "sku": "string",
    }
    assert table.column("zip").to_pylist() == ["01234", "99999"]
    assert table.column("count").to_pylist() == [3, None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image;label\nä.jpg;b\n"),
        ("a.tsv", "image\tlabel\nä.jpg\tb\n"),
        ("a.csv", "\ufeffimage,label\r\nä.jpg,b\r\n"),
        ("a.csv", "image,label\rä.jpg,b\r"),
        ("a.jsonl", '{"image": "ä.jpg", "label": "b"}\n\n'),
    ],
)
def test_dialects(tmp_path, name, text):
    table = read_table(write(tmp_path, name, text), encoding="utf-8")
    assert table.to_pylist() == [{"image": "ä.jpg", "label": "b"}]


def test_quoted_newlines_and_compression(tmp_path):
    path = write(tmp_path, "a.csv.gz", gzip.compress(b'image,note\na,"two\nlines"\n'))
    assert read_table(path, encoding="utf-8").column("note").to_pylist() == ["two\nlines"]


def test_jsonl_keeps_texts_that_look_like_something_else(tmp_path):
    path = write(
        tmp_path,
        "a.jsonl",
        '{"image": "a", "sku": "00012", "day": "2024-01-01", "tags": ["x"]}\n{"image": "b"}\n',
    )
    assert read_table(path, encoding="utf-8").to_pylist() == [
        {"image": "a", "sku": "00012", "day": "2024-01-01", "tags": ["x"]},
        {"image": "b", "sku": None, "day": None, "tags": None},
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", b"", ["empty"]),
        ("a.csv", b"image,label\n", ["no rows"]),
        ("a.csv", b"image,label\na,b\nc,d,e\n", ["line 3", "3 values", "header has 2"]),
        ("a.csv", b"image,image\na,b\n", ["twice", "'image'"]),
        ("a.csv", "image,label\na,b\nc,é\n".encode("latin-1"), ["line 3", "0xe9", "catalog.encoding"]),
        ("a.jsonl", b'{"image": 1}\n{"image"\n', ["line 2", "not JSON"]),
        ("a.jsonl", b"[1]\n", ["line 1", "object"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "x"}\n', ["'a'", "mixes types"]),
        ("a.csv.gz", b"nonsense", ["not .gz data"]),
        ("a.jsonl", b'{"n": 123456789012345678901234567890}\n', ["'n'"]),
        ("a.parquet", b"nonsense", ["not a Parquet file"]),
        ("a.xlsx", b"x", ["unknown kind", ".parquet"]),
    ],
)
def test_bad_files_say_where_and_what(tmp_path, name, data, words):
    path = write(tmp_path, name, data)
    with pytest.raises(CatalogError) as caught:
        read_table(path, encoding="utf-8")
    for word in [path, *words]:
        assert word in str(caught.value)


def test_latin_1_is_read_when_asked(tmp_path):
    path = write(tmp_path, "a.csv", "image\né\n".encode("latin-1"))
    assert read_table(path, encoding="latin-1").column("image").to_pylist() == ["é"]


def test_parquet_keeps_every_type(tmp_path):
    frame = pd.DataFrame({"image": ["a"], "when": pd.to_datetime(["2024-01-02"]), "tags": [["x", "y"]], "n": [3]})
    path = str(tmp_path / "a.parquet")
    frame.to_parquet(path)
    assert read_table(path, encoding="utf-8").schema.types == pa.parquet.read_schema(path).types


def test_labels_as_text():
    column = pa.chunked_array([pa.array([1.0, None, float("nan")])])
    assert as_text(column).to_pylist() == ["1", "", ""]
    assert as_text(pa.chunked_array([pa.array(["a", None]).dictionary_encode()])).to_pylist() == ["a", ""]
    with pytest.raises(TypeError):
        as_text(pa.chunked_array([pa.array([[1]])]))
