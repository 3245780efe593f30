"""Taxonomies as others publish them, and what is wrong with some."""

import pandas as pd
import pytest

from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog
from retailray.data.taxonomy import read_taxonomy, taxonomy_of
from retailray.errors import CatalogError

GOOGLE = """# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
3237 - Animals & Pet Supplies > Live Animals
2 - Food
22 - Food > Fruit
23 - Food > Fruit > Apple
24 - Food > Drinks > Juice
25 - Food > Drinks > Apple
"""
SHOPIFY = """# Shopify Product Taxonomy
gid://shopify/TaxonomyCategory/ap : Animals & Pet Supplies
gid://shopify/TaxonomyCategory/ap-1 : Animals & Pet Supplies > Live Animals
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="taxonomy.txt"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_lines_of_paths(file):
    assert read_taxonomy(file(GOOGLE)) == [
        ("Animals & Pet Supplies",),
        ("Animals & Pet Supplies", "Live Animals"),
        ("Food",),
        ("Food", "Drinks"),
        ("Food", "Drinks", "Apple"),
        ("Food", "Drinks", "Juice"),
        ("Food", "Fruit"),
        ("Food", "Fruit", "Apple"),
    ]
    assert read_taxonomy(file(SHOPIFY))[-1] == ("Animals & Pet Supplies", "Live Animals")


def test_pairs_of_child_and_parent(file):
    uri = file("Child,Parent\nGala,Apple\nApple,Fruit\nFruit,\nPear,Fruit\n", "pairs.csv")
    assert sorted(read_taxonomy(uri)) == [("Fruit",), ("Fruit", "Apple"), ("Fruit", "Apple", "Gala"), ("Fruit", "Pear")]
    found = taxonomy_of(uri, (), ["Gala", "Pear", "Apple"])
    assert found.paths == {"Gala": ("Fruit", "Apple", "Gala"), "Pear": ("Fruit", "Pear"), "Apple": ("Fruit", "Apple")}


def test_labels_are_names_or_paths(file):
    uri = file(GOOGLE)
    found = taxonomy_of(uri, (), ["Juice", "Food > Fruit > Apple"])
    assert found.paths["Juice"] == ("Food", "Drinks", "Juice")
    assert found.paths["Food > Fruit > Apple"] == ("Food", "Fruit", "Apple")
    with pytest.raises(CatalogError, match="'Apple' stands in several branches"):
        taxonomy_of(uri, (), ["Apple"])
    with pytest.raises(CatalogError, match=r"does not have the labels 'Pear'; rename.*catalog.label_map"):
        taxonomy_of(uri, (), ["Pear", "Juice"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("child,parent\na,b\nb,c\nc,a\n", "it has a cycle: "),
        ("child,parent\na,a\n", "it has a cycle: a > a"),
        ("child,parent\na,b\na,c\n", "'a' has two parents"),
        ("child,parent\n,b\n", "no child"),
        ("a\nb\n", "neither lines of paths"),
        ("1 - A > > B\n", "a level without a name"),
        ("\xff\xfe", "neither lines of paths"),
    ],
)
def test_what_is_no_taxonomy_is_told(file, text, words):
    with pytest.raises(CatalogError, match=words):
        read_taxonomy(file(text))


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / "t.bin").write_bytes(b"\xff\xfe\x00A")
    with pytest.raises(CatalogError, match="no text in UTF-8"):
        read_taxonomy(str(tmp_path / "t.bin"))


def told_by(tmp_path, rows, labels, **settings):
    """The taxonomy of a catalog of these rows (label, parent)."""
    table = pd.DataFrame(rows, columns=["label", "parent"]).assign(image=[f"{at}.jpg" for at in range(len(rows))])
    table.to_csv(tmp_path / "c.csv", index=False)
    catalog = read_catalog(CatalogSection(uri=str(tmp_path / "c.csv"), **settings))
    return taxonomy_of(None, [catalog], labels)


def test_a_column_of_parents(tmp_path):
    rows = [("mug", "tableware"), ("tableware", "household"), ("lamp", "household"), ("mug", ""), ("soap", "")]
    found = told_by(tmp_path, rows, ["mug", "lamp", "tableware", "soap"], parent="parent")
    assert found.paths == {
        "mug": ("household", "tableware", "mug"),
        "lamp": ("household", "lamp"),
        "tableware": ("household", "tableware"),
        "soap": ("soap",),
    }
    same = [("mug", "Tableware"), ("mug", "tableware ")]
    found = told_by(tmp_path, same, ["mug"], parent="parent", normalize_labels=True)
    assert len(found.paths["mug"]) == 2, "parents are written as labels are"
    with pytest.raises(CatalogError, match="several parents: a and b"):
        told_by(tmp_path, [("mug", "a"), ("mug", "b")], ["mug"], parent="parent")
    for cycle in ([("mug", "mug")], [("a", "b"), ("b", "a")]):
        with pytest.raises(CatalogError, match="it has a cycle"):
            told_by(tmp_path, cycle, [cycle[0][0]], parent="parent")
    with pytest.raises(CatalogError, match="no labelled row has a value there, or there is no such column"):
        told_by(tmp_path, [("mug", "a")], ["mug"], parent="nowhere")


def test_labels_that_are_paths(tmp_path, capsys):
    rows = [("Food > Fruit > Apple", ""), ("Apple", ""), ("Food > Juice", ""), ("Drinks > Juice", "")]
    found = told_by(tmp_path, rows, ["Apple", "Juice"], label_separator=">")
    assert found.paths == {"Apple": ("Food", "Fruit", "Apple"), "Juice": ("Juice",)}
    assert "stand in several branches" in capsys.readouterr().out
    found = told_by(tmp_path, rows, ["Food > Juice"], label_separator=">", label_level="path")
    assert found.paths == {"Food > Juice": ("Food", "Juice")}
    assert told_by(tmp_path, [("a", ""), ("b", "")], ["a", "b"]) is None
