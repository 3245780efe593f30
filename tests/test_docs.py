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


def commands_of(page):
    """What a page tells people to type, on a line of its own."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    values = dict(re.findall(r'^(\w+)="(.*)"$', "\n".join(lines), re.MULTILINE))
    return [
        re.sub(r"\$(\w+)", lambda name: values[name[1]], line.partition("  #")[0])
        for line in lines
        if line.startswith("retailray ")
    ]


@pytest.mark.parametrize("page", ["google-cloud.md", "azure.md"])
def test_every_command_of_a_cloud_is_one(page, tmp_path):
    scheme = "gs" if "google" in page else "az"
    readme = (DOCS.parent / "README.md").read_text()
    night = re.search(r"cat > night.yaml <<'?END'?\n(.*?)END\n", readme, re.DOTALL) or re.search(
        r"```yaml\n(.*?)```", readme, re.DOTALL
    )
    (tmp_path / "night.yaml").write_text(night[1].replace("s3://", f"{scheme}://"))
    commands = commands_of(page)
    assert len(commands) == 5
    for line in commands:
        _, command, *words = shlex.split(line)
        at = words.index("--config") if "--config" in words else None
        if at is not None and words[at + 1] == "night.yaml":
            words[at + 1] = str(tmp_path / "night.yaml")
        elif at is not None:  # a file that a search writes
            words[at : at + 2] = ["--catalog.uri", "x", "--model.arch", "resnet50"]
        assert arguments.parse(command, words).out.startswith(f"{scheme}://")


CLOUDS = ("google-cloud.md", "azure.md")
COMPLETE = [
    (page.name, line)
    for page in sorted(DOCS.glob("*.md"))
    if page.name not in CLOUDS
    for line in commands_of(page.name)
    if not re.search(r"\.\.\.|--config|^retailray submit", line)
]


@pytest.mark.parametrize(("page", "line"), COMPLETE)
def test_every_complete_command_of_a_guide_is_one(page, line):
    """Kind of fault: a setting is renamed, and a guide still says the old name."""
    _, command, *words = shlex.split(line)
    assert arguments.parse(command, words).out


def test_guides_have_complete_commands():
    assert len({page for page, _ in COMPLETE}) > 10


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
