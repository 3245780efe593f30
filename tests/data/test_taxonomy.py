"""Taxonomies as others publish them, and what is wrong with some."""

import pytest

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
    assert found.paths["Food > Fruit > Apple"][:2] == ("Food", "Fruit")
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
