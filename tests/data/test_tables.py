import gzip
import io
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest

from retailray.data.arrow_tables import LosslessTypes, as_text, gathered
from retailray.data.spreadsheets import csv_text, without_apostrophe
from retailray.data.tables import read_table, stream_table
from retailray.errors import CatalogError


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def test_csv_columns_get_types_only_where_nothing_is_lost(tmp_path):
    text = "image,zip,price,count,mixed,empty,long,sku\na,01234,1.5,3,1,,1234567890123456789,12E4\nb,99999,2,,x,,2,3\n"
    path = write(tmp_path, "a.csv", text)
    types, table = LosslessTypes(keep_text=["image"]), read_table(path, encoding="utf-8")
    types.look(table)
    table = types.cast(table)
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
        ("a.jsonl", b'{"a": 1}\n{"a": "x"}\n', ["'a'", "mixes types", "line 1 holds 1, line 2 'x'"]),
        ("a.jsonl", b'{"a": 1}\n{"a": 2.5}\n{"a": "x"}\n', ["line 1 holds 1, line 3 'x'"]),
        ("a.jsonl", b'{"a": null}\n\n{"a": "x"}\n{"a": [1]}\n', ["line 3 holds 'x', line 4 [1]"]),
        ("a.csv.gz", b"nonsense", ["not .gz data"]),
        ("a.jsonl", b'{"n": 123456789012345678901234567890}\n', ["'n'"]),
        ("a.parquet", b"nonsense", ["not a Parquet file"]),
        ("a.xlsx", b"x", ["unknown table format", ".parquet"]),
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


ROWS = 45_000  # three pieces


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.parquet"])
def test_large_files_come_in_pieces_of_one_schema(tmp_path, name):
    frame = pd.DataFrame({"image": [f"{row}.jpg" for row in range(ROWS)], "price": [float(row) for row in range(ROWS)]})
    path = str(tmp_path / name)
    if ".csv" in name:
        frame.to_csv(path, index=False)
    elif ".jsonl" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path, row_group_size=ROWS)
    pieces = list(stream_table(path, encoding="utf-8"))
    assert len(pieces) >= 3
    assert max(piece.num_rows for piece in pieces) <= 20_000
    assert len({piece.schema for piece in pieces}) == 1
    assert pa.concat_tables(pieces).column("image").to_pylist() == frame.image.tolist()


def test_types_hold_for_all_pieces(tmp_path):
    """The first piece of a file does not speak for the rest of it."""
    path = write(tmp_path, "a.jsonl", '{"n": 1}\n' * 20_000 + '{"n": 0.5, "note": "x"}\n')
    table = read_table(path, encoding="utf-8")
    assert table.schema.field("n").type == pa.float64()
    assert table.column("note").to_pylist()[-2:] == [None, "x"]
    path = write(tmp_path, "a.csv", "image,n\n" + "a,1\n" * 20_000 + "b,0012\n")
    types = LosslessTypes(keep_text=["image"])
    for piece in stream_table(path, encoding="utf-8"):
        types.look(piece)
    assert types.cast(read_table(path, encoding="utf-8")).schema.field("n").type == pa.string()


@pytest.mark.slow
def test_a_bad_line_far_down_is_named(tmp_path):
    path = write(tmp_path, "a.csv", "image,n\n" + "a,1\n" * 500_000 + "b,1,2\n")
    with pytest.raises(CatalogError, match="line 500002: 3 values"):
        read_table(path, encoding="utf-8")
    path = write(tmp_path, "b.csv", b"image,n\n" + b"a,1\n" * 500_000 + b"\xff,1\n")
    with pytest.raises(CatalogError, match="line 500002: byte 0xff"):
        read_table(path, encoding="utf-8")


def test_no_text_in_a_csv_is_a_formula():
    """Kind of fault: a label that begins with = runs in the spreadsheet of who looks at the results."""
    hostile = ["=HYPERLINK(1)", "+1", "-2", "@SUM(A1)", "\tx", "'=x", "'plain", "plain", "", "a=b"]
    frame = pd.DataFrame({"label": hostile, "=evil": range(len(hostile)), "rate": -0.5})
    text = csv_text(frame)
    back = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert not [value for value in [*back.label, *back.columns] if value[:1] in tuple("=+-@\t")]
    assert list(map(without_apostrophe, back.label)) == hostile
    assert set(back.rate) == {"-0.5"}, "numbers are numbers"


def test_gathered_tables_are_what_they_were():
    tables = [pa.table({"n": [at, None], "names": [["a", "b"], None], "text": ["ü", ""]}) for at in range(5)]
    assert gathered(iter(tables)).equals(pa.concat_tables(tables))


@pytest.mark.slow
def test_what_is_predicted_takes_the_memory_of_the_predictions(tmp_path):
    """Kind of fault: small results that are kept split the heap, and the memory of every batch stays taken."""
    code = """
import sys, psutil, torch, pyarrow as pa
from retailray.data.arrow_tables import gathered

def batches():
    for number in range(150):
        logits = torch.rand(64, 8000)
        shares = torch.softmax(logits, 1).numpy()
        yield pa.table({"label": [str(row) for row in shares.argmax(1)], "share": shares.max(1),
                        "top": shares[:, :5].tolist(), "lines": [["a", "b"]] * 64})
        if number == 20:
            sys.before = psutil.Process().memory_info().rss

table = gathered(batches())
assert table.num_rows == 150 * 64
print((psutil.Process().memory_info().rss - sys.before) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) < 100, done.stderr
