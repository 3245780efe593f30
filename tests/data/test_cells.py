"""Addresses and labels in one cell: lists, separators, quoting."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailray.data.cells import MAX_PICTURES, BadCell, addresses_in, label_in, lookup

# names of files with what people have in them, commas, blanks inside and signs of CSV among it
names = st.text(st.sampled_from("abcXYZ019 _-(),;|%'&=+é"), min_size=1, max_size=12).map(lambda name: f"a{name}b")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
relative = paths.map(lambda path: f"{path}.jpg")
urls = st.one_of(
    paths.map(lambda path: f"https://cdn.example/{path}.jpg"),
    paths.map(lambda path: f"https://cdn.example/{path}?w=200,300&f=webp"),
    paths.map(lambda path: f"s3://shop/{path}.png"),
)
pictures = st.one_of(st.lists(relative, min_size=1, max_size=5), st.lists(urls, min_size=1, max_size=5))


@given(pictures)
def test_a_list_comes_back_however_it_is_written(addresses):
    for cell in (addresses, tuple(addresses), json.dumps(addresses), str(addresses), f" {json.dumps(addresses)} "):
        assert addresses_in(cell, None) == addresses
        assert addresses_in(cell, ",") == addresses, "what stands in a list is not divided"


@given(st.sampled_from(["|", ";", ",", " | ", ", "]), pictures)
def test_several_addresses_in_one_text_are_found(separator, addresses):
    """Where no address has the separator, or another one that comes before it, in it."""
    sign = separator.strip()
    plain = [one for one in addresses if not set("|;,") & set(one)]
    if len(plain) > 1:
        assert addresses_in(separator.join(plain), None) == plain
        assert addresses_in(separator.join([*plain, ""]), sign) == plain, "an empty item is none"


@given(st.one_of(relative, urls))
def test_one_address_stays_one_whatever_signs_it_has(address):
    """Kind of fault: a comma, semicolon or bar inside of an address divides it, so a picture is lost without a word.

    But where the parts are addresses of their own, nobody can tell.
    """
    found = addresses_in(address, None)
    if found != [address]:
        assert all(part.lower().endswith((".jpg", ".png")) for part in found)
        assert "://" not in address, "an address with a scheme is divided before another scheme alone"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("https://img.example/w_200,h_300/a.jpg", ["https://img.example/w_200,h_300/a.jpg"]),
        ("https://img.example/a%2Cb.jpg", ["https://img.example/a%2Cb.jpg"]),
        ("http://a/1.jpg,http://a/w_1,h_2/2.jpg", ["http://a/1.jpg,http://a/w_1,h_2/2.jpg"]),
        ("http://a/1.jpg|http://a/w_1,h_2/2.jpg", ["http://a/1.jpg", "http://a/w_1,h_2/2.jpg"]),
        ("data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
        ("[draft] mug.jpg", ["[draft] mug.jpg"]),
        ("[http://a/1.jpg, http://a/2.jpg]", ["http://a/1.jpg", "http://a/2.jpg"]),
        ("[]", []),
        ("['a'].jpg", ["['a'].jpg"]),
        ("  ", []),
        (None, []),
        (float("nan"), []),
        ([{"src": "a.jpg"}, {"url": "b.jpg"}, None], ["a.jpg", "b.jpg"]),
        (" a.jpg , b.jpg ,", ["a.jpg", "b.jpg"]),
        (108775015, ["108775015"]),
    ],
)
def test_cells(cell, expected):
    assert addresses_in(cell, None) == expected


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ('["a.jpg", "b.jpg"', "a list that cannot be read"),
        ([{"caption": "x"}], "name one, as in column.key"),
        ([f"{n}.jpg" for n in range(1_000_000)], "1000000 pictures"),
        (",".join(f"{n}.jpg" for n in range(MAX_PICTURES + 1)), f"{MAX_PICTURES + 1} pictures"),
    ],
)
def test_cells_that_cannot_be_read_say_why(cell, words):
    with pytest.raises(BadCell, match=words):
        addresses_in(cell, None)


@pytest.mark.parametrize(
    ("cell", "separator", "level", "several", "label"),
    [
        ("Home > Kitchen > Mugs", ">", "last", None, "Mugs"),
        ("Home > Kitchen > Mugs", " > ", "first", None, "Home"),
        ("Home>Kitchen>Mugs", " > ", "2", None, "Kitchen"),
        ("Home > Kitchen > Mugs", ">", "path", None, "Home > Kitchen > Mugs"),
        ("Home > Mugs", ">", "3", None, ""),
        ("Shop > Mugs, Sale", ">", "last", ",", "Mugs"),
        ("Sale, Shop > Mugs", ">", "last", ",", "Mugs"),
        ("Mugs, Sale", ">", "last", ",", "Mugs"),
        (r"Home\, Garden > Mugs, Sale", ">", "first", ",", "Home, Garden"),
        ('["Clothing >> Mugs >> Item 0"]', ">>", "2", None, "Mugs"),
        (["Home", "Mugs"], None, "last", None, "Mugs"),
        ([["Home", "Mugs"], ["Sale"]], None, "last", None, "Mugs"),
        ([{"value": "MUGS"}], None, "last", None, "MUGS"),
        (" Mugs ", None, "last", None, " Mugs "),
        (None, ">", "last", ",", ""),
        ("", ">", "path", None, ""),
    ],
)
def test_labels(cell, separator, level, several, label):
    assert label_in(cell, separator, level, several) == label


def test_nested_values_are_found_by_their_path():
    value = {"type": [{"value": "MUGS"}], "images": [{"large": "a"}, {"large": "b"}, {"small": "c"}]}
    assert lookup(value, ["type", "0", "value"]) == "MUGS"
    assert lookup(value, ["images", "large"]) == ["a", "b"]
    assert lookup(value, ["images", "7", "large"]) is None
    assert lookup(json.dumps(value), ["type", "0", "value"]) == "MUGS"
    assert lookup("plain", ["type"]) is None


def test_a_separator_after_a_backslash_is_part_of_an_address():
    assert addresses_in(r"https://x/a\,b.jpg, https://x/c.jpg", ",") == ["https://x/a,b.jpg", "https://x/c.jpg"]
