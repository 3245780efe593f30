"""Charts within pages, whatever the names in them are."""

from xml.etree import ElementTree

import pytest

from retailray.reports import plots

HOSTILE = ["</svg><script>alert(1)</script>", "a\x0bb\x00\x1f", "\ufffe", "$x^2$", "&amp;", "ünï ☃ 靴", "x" * 300, ""]


@pytest.mark.parametrize("label", HOSTILE)
def test_any_label_is_text_in_a_chart(label):
    """Kind of fault: a name with control characters ends the command that draws it; one with tags becomes a tag."""
    text = str(plots.label_bars({label: 3, "mug": 2}, "rows").svg(f"rows of {label}"))
    root = ElementTree.fromstring(text)
    assert "<script" not in text
    assert root.get("role") == "img"
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "mug: 2 rows" in titles
    assert len(titles) == 2


def test_two_charts_of_a_page_share_no_names():
    """Names that nobody refers to are left out; the others are the same only where what they name is."""
    one, other = (str(plots.label_bars({"a": 1, name: 2}, "rows").svg("x")) for name in "bc")
    named = [
        {
            element.get("id"): ElementTree.tostring(element)
            for element in ElementTree.fromstring(text).iter()
            if element.get("id")
        }
        for text in (one, other)
    ]
    assert all(named[0][name] == named[1][name] for name in named[0].keys() & named[1].keys())
