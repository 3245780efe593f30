"""What the guides tell people to type is what works."""

import re
import shlex
from pathlib import Path

import pytest

from retailray.config import arguments
from retailray.data.recognition import known_layouts
from tests.data import test_exports, test_layouts

DOCS = Path(__file__).parents[1] / "docs"


def typed(section):
    """The commands of a table of ``catalogs.md``: the first code of each line that begins with a setting."""
    text = (DOCS / "catalogs.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    found = [re.search(r"\| `(--catalog[^`]*)`", line) for line in text.splitlines()]
    return [one[1] for one in found if one]


WHERE_FROM = typed("Where does your catalog come from?")


@pytest.mark.parametrize("line", [*WHERE_FROM, *typed("Which tables with one picture a row work?")])
def test_every_line_of_the_catalogs_is_a_command(line):
    config = arguments.parse(
        "check", [*shlex.split(line), *([] if ".uri" in line else ["--catalog.uri", "x"]), "--out", "o"]
    )
    assert config.catalog.uri


def test_every_layout_that_the_guide_names_is_read_by_a_test():
    """By the name of its file, with the settings that are told: of layouts from elsewhere and of those made here."""
    known = {}
    for name, (settings, *_) in test_exports.LAYOUTS.items():
        known.setdefault(name.split("/")[-1], []).append(settings)
    for file, _, settings, *_ in test_layouts.LAYOUTS.values():
        known.setdefault(file, []).append(settings)
    known["styles.csv"] = [{"image_template": "", "label": "", "id": "", "bad_lines": ""}]
    known["feed.tsv"] = known["feed.tsv"] + known["feed.xml"]
    known["catalog.csv"] = [{}]
    for line in WHERE_FROM:
        words = shlex.split(line)
        keys = {key.removeprefix("--catalog.") for key in words[::2]} - {"uri"}
        file = words[words.index("--catalog.uri") + 1]
        assert file in known, file
        assert any(keys == set(settings) - {"label_map"} for settings in known[file]), (file, keys)


def test_the_guide_names_every_layout():
    text = (DOCS / "catalogs.md").read_text()
    assert [name for name in known_layouts() if f"`{name}`" not in text] == []
