"""CSV as people have it: rows in = rows out, or a refusal that names the line. Never fewer rows in silence."""

import csv
import gzip
import io
import random
import re
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retailray.data import json_lines, tables
from retailray.data.csv_files import CsvOptions, find_delimiter
from retailray.data.tables import read_table, stream_records
from retailray.errors import CatalogError

CELLS = st.text(st.sampled_from("ab1 ,;|\t\"'é/.\n"), max_size=8)


def write(folder, data, name="c.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def read_or_refuse(path, **settings):
    """The table, or what the refusal says."""
    try:
        return read_table(path, **settings), ""
    except CatalogError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
@example(rows=[("a", "b\nc", "d")], delimiter=",", quoting=csv.QUOTE_MINIMAL, ending="\r\n", encoding="utf-16")
@pytest.mark.slow
def test_what_a_csv_writer_wrote_comes_back(tmp_path_factory, rows, delimiter, quoting, ending, encoding):
    """Kind of fault: a dialect or an encoding that is read as another one loses rows."""
    rows = [("image.png", *row[1:]) for row in rows]  # a first cell without blanks: no row is a blank line
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerows([("image", "label", "title"), *rows])
    data = text.getvalue().replace("\n", ending).encode(encoding)
    path = write(tmp_path_factory.mktemp("csv"), data)
    table, refusal = read_or_refuse(path, encoding="latin-1" if encoding == "latin-1" else "utf-8")
    if refusal:
        assert re.search(r"line \d+", refusal), refusal
        assert any("\n" in cell for row in rows for cell in row), "only a value of several lines may be refused"
        return
    assert table.num_rows == len(rows)
    assert [tuple(row.values()) for row in table.to_pylist()] == rows


@settings(max_examples=300, deadline=None)
@given(
    quoted=st.lists(st.sampled_from(["none", "begin", "end", "middle"]), min_size=2, max_size=12),
    delimiter=st.sampled_from(",;\t|"),
    last=st.booleans(),
)
def test_a_stray_quote_takes_no_row_along(tmp_path_factory, quoted, delimiter, last):
    """Kind of fault: a quote that opens a value swallows every row up to the next quote, and the run ends well."""
    titles = {"none": "sleeve", "begin": '"15 inch sleeve', "end": 'sleeve 15"', "middle": 'a 15" sleeve'}
    cells = [["a.png", "mug", titles[kind]] for kind in quoted]
    lines = [["image", "label", "title"], *cells]
    order = [0, 1, 2] if last else [2, 0, 1]
    text = "\n".join(delimiter.join(line[at] for at in order) for line in lines) + "\n"
    path = write(tmp_path_factory.mktemp("csv"), text)
    table, refusal = read_or_refuse(path, encoding="utf-8")
    if refusal:
        assert re.search(r"line \d+", refusal), refusal
        assert "catalog.quoting" in refusal
        assert "begin" in quoted
    else:
        assert table.num_rows == len(quoted)
    plain = read_table(path, encoding="utf-8", csv=CsvOptions(quoting="none"))
    assert plain.column("title").to_pylist() == [titles[kind] for kind in quoted], "the way out works"


def test_rows_know_the_line_they_begin_on(tmp_path):
    """Kind of fault: an error row names a line that is another row's, where values have several lines or lines none."""
    text = 'sep=;\n\nimage;note\n"a";"one\ntwo"\n\n  \nb;x\n'
    [(table, lines, *_)] = list(stream_records(write(tmp_path, text), encoding="utf-8"))
    assert table.column("image").to_pylist() == ["a", "b"]
    assert lines.tolist() == [4, 8]
    [(_, lines, *_)] = list(
        stream_records(write(tmp_path, '\n{"image": "a"}\n\n{"image": "b"}\n', "c.jsonl"), encoding="utf-8")
    )
    assert lines.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("header", "rows", "delimiter"),
    [
        ('image,label,"price; EUR"', ['a.png,x,"3;5"'] * 3, ","),
        ('image;label;"price, EUR, net"', ["a.png;x;3,5"] * 3, ";"),
        ("image;price, EUR", ["a.png;3,5"] * 3, ";"),
        ("image", ["a;b.png"] * 3, ","),
        ("image|label", ["a.png|x, y"] * 3, "|"),
        ("image,label", ["a.png,x;y;z"] * 3, ","),
        ('image,label,screen "', ["a.png,x,y"] * 3, ","),
    ],
)
def test_the_delimiter_is_found_by_parsing(header, rows, delimiter):
    assert find_delimiter([header, *rows], "auto", whole=True) == delimiter


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'image,label\na.png,x\nb.png,"x\n' + b"c.png,x\n" * 38, ["line 3", "not closed", "catalog.quoting"]),
        (b'image,"label\na.png,x\n', ["line 1", "not closed"]),
        (b'image,label,"title\na.png,x,y\nb.png,x,"z"\n', ["line 1"]),
        (b'image,label,"title\na.png,x,12"\nb.png,x,z\n', ["line 1", "line 2 inside of it looks like a row"]),
        (b'image,title\na.jpg,"15 inch\nb.jpg,17 inch, blue"\nc.jpg,x\n', ["line 2", "line 3 inside of it"]),
        (b"image,label\na.png," + b"x" * 9_000_000 + b"\n", ["line 2"]),
        (b",,\n", ["line 1"]),
        (b'""\n', ["no rows"]),
        (b"PK\x03\x04\x14\0\0\0xl/workbook.xml", ["Excel workbook (.xlsx)"]),
        (b"PAR1....PAR1", ["a Parquet file"]),
        ("image,label\na.png,x\n".encode("utf-16-le"), ["UTF-16", "catalog.encoding to utf-16-le"]),
        ("image,label\na.png,x\n".encode("utf-16-be"), ["UTF-16", "catalog.encoding to utf-16-be"]),
        (b"<!DOCTYPE html><html>", ["HTML page"]),
        (b"image,label\na.png,x,y\n" * 5, ["line 2: 3 values where the header has 2", "catalog.delimiter"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, data, words):
    with pytest.raises(CatalogError) as caught:
        read_table(write(tmp_path, data), encoding="utf-8")
    for word in words:
        assert word in str(caught.value), caught.value


def test_excels_separator_line_may_name_a_tab(tmp_path):
    table = read_table(write(tmp_path, "sep=\t\nimage\tlabel\na.png\tx, y\n"), encoding="utf-8")
    assert table.to_pylist() == [{"image": "a.png", "label": "x, y"}]


def test_settings_overrule_what_is_found(tmp_path):
    path = write(tmp_path, 'a.png;"x;y"\nb.png;z\n')
    options = CsvOptions(columns=("image", "label"), delimiter=";", quoting="standard")
    assert read_table(path, encoding="utf-8", csv=options).to_pylist() == [
        {"image": "a.png", "label": "x;y"},
        {"image": "b.png", "label": "z"},
    ]
    path = write(tmp_path, 'image,note\na.png,"one\nb.png,two"\n')
    with pytest.raises(CatalogError, match="to standard if the value is meant"):
        read_table(path, encoding="utf-8")
    table = read_table(path, encoding="utf-8", csv=CsvOptions(quoting="standard"))
    assert table.to_pylist() == [{"image": "a.png", "note": "one\nb.png,two"}]


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.csv.gz", "catalog.zip!/table.csv"])
def test_a_line_without_end_is_refused_before_it_fills_memory(name, tmp_path, monkeypatch):
    """Kind of fault: what is one line of any length is read to its end, from a disk or an archive, to be no table."""
    monkeypatch.setattr(tables, "MAX_LINE", 3 << 20)
    monkeypatch.setattr(json_lines, "MAX_LINE", 3 << 20)
    start = b'{"image": "a.jpg"}\n{"image": "' if "jsonl" in name else b"image,label\na.jpg,mug\n"
    line = bytes(random.Random(0).choices(b"abcdefgh", k=1 << 20)) * 8  # which packs to a seventh: no bomb
    written, _, member = name.partition("!/")
    if member:
        with zipfile.ZipFile(tmp_path / written, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(member, start + line)
    else:
        (tmp_path / written).write_bytes(gzip.compress(start + line, 1) if name.endswith(".gz") else start + line)
    with pytest.raises(CatalogError, match=r"table\..* line . is longer than 3145728 characters"):
        list(tables.stream_records(f"{tmp_path}/{name}", encoding="utf-8"))
