"""The reports of a small demo as people meet them: in a browser, by keyboard, on narrow screens, in the dark."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from retailray.cli import main
from tests.browser import launched, problems_of
from tests.commands.helpers import latest, read_json

pytestmark = pytest.mark.slow
KINDS = ("check", "train", "evaluate", "score")


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    assert main(["demo", "--out", str(folder), "--demo.num_images", "60"]) == 0
    return Path(latest(str(folder)))


@pytest.fixture(scope="module")
def compared(demo):
    """Of the model that is pretrained and the one from random weights."""
    bundles = sorted(map(str, demo.glob("train/run_id=*/bundle")))
    arguments = {
        "catalog.uri": demo / "catalog/catalog.csv",
        "catalog.group": "sku",
        "catalog.max_pixels": 20_000_000,
        "compare.split": "all",
        "model.uri": bundles[1],
        "compare.baseline": bundles[0],
        "out": demo / "compare",
    }
    assert main(["compare", *(word for name, value in arguments.items() for word in (f"--{name}", str(value)))]) == 0
    return Path(latest(str(demo / "compare")))


def page_of(demo, kind):
    return demo / "report.html" if kind == "demo" else Path(latest(str(demo / kind))) / "report.html"


@pytest.mark.parametrize("kind", ["demo", *KINDS])
def test_a_report_is_whole_on_every_screen(kind, demo, browser):
    assert problems_of(browser, page_of(demo, kind)) == []


def test_a_comparison_is_whole_on_every_screen(compared, browser):
    assert problems_of(browser, compared / "report.html") == []


@pytest.mark.parametrize("kind", ["evaluate", "score"])
def test_the_page_of_runs_is_whole_on_every_screen(kind, demo, browser):
    assert problems_of(browser, demo / kind / "index.html") == []


def test_the_page_of_runs_lists_every_run_with_its_figures(demo, browser):
    """Every cell against run.json; every link leads to a page."""
    page = browser.new_page()
    page.goto((demo / "evaluate/index.html").as_uri())
    rows = page.locator("table tr").all()[1:]
    runs = sorted((demo / "evaluate").glob("run_id=*"), reverse=True)
    assert len(rows) == len(runs) == 2
    for row, run in zip(rows, runs, strict=True):
        facts = read_json(str(run / "run.json"))
        cells = [cell.inner_text() for cell in row.locator("td").all()]
        assert cells[0] == facts["run_id"]
        assert cells[2:5] == [
            f"{100 * facts['top1']:.1f} %",
            f"{100 * facts['macro_f1']:.1f} %",
            str(facts["num_rows"]),
        ]
        assert (demo / "evaluate" / row.locator("a").get_attribute("href")).is_file()
    told = page.locator("svg title").all_text_contents()
    assert [text.split(":")[0] for text in told] == [run.name.removeprefix("run_id=") for run in runs[::-1]] * 2
    page.close()


def told(path):
    """What the marks of a page's charts say where one points at them."""
    page = path.read_text()
    found = []
    for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL):
        found += [title.text for title in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]
    return found


def test_charts_say_the_numbers_of_the_tables(demo):
    run = Path(latest(str(demo / "train")))
    history = pd.read_csv(run / "history.csv")
    said = told(run / "report.html")
    for row in history.itertuples():
        assert f"epoch {row.epoch}, validation: {row.validation_top1:.4f}" in said
        assert f"epoch {row.epoch}, train: {row.train_loss:.4f}" in said
        assert f"epoch {row.epoch}: {row.lr:.4g}" in said
    run = Path(latest(str(demo / "evaluate")))
    confusion = pd.read_csv(run / "confusion.csv", index_col="truth")
    cells = [text for text in told(run / "report.html") if ", predicted " in text]
    assert len(cells) == (confusion.to_numpy() > 0).sum()
    for truth, row in confusion.iterrows():
        for guess, count in row[row > 0].items():
            assert f"{truth}, predicted {guess}: {count} ({count / row.sum():.0%})" in cells
    run = Path(latest(str(demo / "score")))
    counts = [int(text.split(": ")[1].split()[0]) for text in told(run / "report.html") if text.endswith(" images")]
    assert sum(counts) == read_json(str(run / "run.json"))["counts"]["scored"]


def test_tables_sort_and_filter_by_keyboard(demo, browser):
    page = browser.new_page()
    page.goto(page_of(demo, "score").as_uri())
    table = page.locator("table", has=page.locator("button[aria-label='sort by rows']")).first

    def column():
        return [int(text) for text in table.locator("tr td:nth-child(2)").all_inner_texts()]

    before = column()
    button = table.locator("button[aria-label='sort by rows']")
    button.focus()
    page.keyboard.press("Enter")
    assert column() == sorted(before) != before
    assert table.locator("th[aria-sort='ascending']").count() == 1
    page.keyboard.press("Space")
    assert column() == sorted(before, reverse=True)
    page.close()


def test_long_tables_filter(demo, browser, tmp_path):
    from retailray.reports.page import render

    tables = [{"command": "score", "heads": [], "trend": None, "rows": []}]
    for number in range(20):
        row = {"name": "x", "run_id": f"night-{number}", "started": "", "seconds": "", "complete": False, "cells": []}
        tables[0]["rows"].append(row)
    path = tmp_path / "index.html"
    path.write_text(render("index.html.j2", title="t", subtitle="", run_id="", tables=tables, num_older=0))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.get_by_label("filter the rows").fill("NIGHT-1")
    shown = [row.inner_text().split()[0] for row in page.locator("tr:visible").all()[1:]]
    assert shown == [f"night-{number}" for number in (1, *range(10, 20))]
    page.close()


def test_a_picture_is_enlarged_with_its_facts_and_closed_by_keyboard(demo, browser):
    page = browser.new_page()
    page.goto(page_of(demo, "check").as_uri())
    button = page.locator("button.zoom").first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    facts = dict(zip(dialog.locator("dt").all_inner_texts(), dialog.locator("dd").all_inner_texts(), strict=True))
    images = pd.read_parquet(Path(latest(str(demo / "check"))) / "images.parquet").set_index("uri")
    row = images.loc[facts["address"]]
    assert (facts["label"], facts["split"]) == (row.label, row.split)
    assert facts["size"] == f"{row.width} x {row.height} px"
    assert dialog.locator("a").get_attribute("href") == Path(facts["address"]).as_uri()
    assert page.evaluate("document.querySelector('dialog img').naturalWidth") in (128, 256)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.className") == "zoom", "the focus returns"
    page.close()


def test_words_are_defined_at_hand(demo, browser):
    page = browser.new_page()
    page.goto(page_of(demo, "evaluate").as_uri())
    term = page.locator("a.term").first
    meaning = page.locator(term.get_attribute("href"))
    assert meaning.inner_text() == "top-1"
    assert page.locator("dd").first.inner_text()
    sections = [link.get_attribute("href") for link in page.locator("nav a").all()]
    assert len(sections) == page.locator("section h2").count()
    assert all(page.locator(href).count() == 1 for href in sections)
    page.close()


def test_what_is_printed_is_dark_on_white(demo, browser):
    page = browser.new_page(color_scheme="dark")
    page.goto(page_of(demo, "train").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert colours == ["rgb(15, 23, 42)", "rgb(255, 255, 255)"]
    page.close()
