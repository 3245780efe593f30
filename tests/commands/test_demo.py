"""`retailray demo`, small: the whole story in a process of its own, its report's promises, and its pages as people meet
them: in a browser, by keyboard, on narrow screens, in the dark."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from retailray.cli import main
from tests import oracles
from tests.browser import launched, problems_of
from tests.commands.helpers import events, latest, read_json, read_text

pytestmark = pytest.mark.slow
KINDS = ("check", "train", "evaluate", "score")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The command as it ended, and where."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "retailray", "demo", "--out", str(folder), "--demo.num_images", "60"]
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment), folder


@pytest.fixture(scope="module")
def demo(ended):
    done, folder = ended
    assert done.returncode == 0, done.stderr
    return Path(latest(str(folder)))


@pytest.fixture(scope="module")
def browser():
    yield from launched()


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


def audit_products(demo, page):
    """What the page says of the shop of products, from the published tables by pandas."""
    truth = pd.read_csv(demo / "products/catalog.csv", dtype=str, keep_default_na=False)
    scored = latest(f"{demo}/score_products")
    images, products = (pd.read_parquet(f"{scored}/{kind}") for kind in ("predictions", "products"))
    assert sorted(images.image) == sorted(truth.image)
    assert sorted(products.sku) == sorted(set(truth.sku))
    label = truth.drop_duplicates("sku").set_index("sku").true_label
    single = (images.topk_labels.str[0] == images.true_label).mean()
    whole = (products.pred_label == label[products.sku].to_numpy()).mean()
    accepted = images[images.decision == "accept"]
    as_class = (accepted.pred_label == accepted.topk_labels.str[0]).sum() / len(images)
    for share in (single, whole, as_class, len(accepted) / len(images)):
        assert f"{100 * share:.1f} %" in page
    nearest = pd.read_parquet(f"{latest(f'{demo}/similar')}/similar").query("rank == 1").set_index("id").neighbour
    twins = truth[truth.twin != ""].drop_duplicates("sku").set_index("sku").twin
    found = (nearest[twins.index] == twins).sum()
    assert f"{found} of {len(twins)}" in page
    assert found == len(twins), "their pictures are the same but for their files"
    assert sum(truth.shown != truth.true_label) > 0
    shown = latest(f"{demo}/assortment")
    assert os.path.relpath(f"{shown}/report.html", demo) in page, "the last page"
    bought = pd.read_parquet(f"{demo}/purchases/purchases.parquet")
    best = pd.read_parquet(f"{shown}/assortment").iloc[0]
    baskets = bought.groupby("product").basket.nunique()
    assert (best.baskets, best["product"]) == (baskets.max(), baskets.idxmax())


def test_demo(ended, demo):
    done, run = ended[0], str(demo)
    assert done.stderr == "", "quiet logs"
    last = events(done.stdout)[-1]
    page = read_text(f"{run}/report.html")
    assert last["report"] == f"{run}/report.html"
    for link in re.findall(r'href="([^"]+)"', page):
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page, link
        else:
            assert (Path(run) / link).is_file(), link
    catalog = pd.read_csv(f"{run}/catalog/catalog.csv")
    scored = latest(f"{run}/score")
    tables = [pd.read_parquet(f"{scored}/{kind}").image for kind in ("predictions", "errors")]
    assert sorted(pd.concat(tables)) == sorted(catalog.image)
    assert last["rows"] == len(catalog) == last["scored"] + last["failed"]
    wrong = (catalog.label != catalog.true_label).sum()
    assert wrong == 3, "5 % of 60"
    audit_products(demo, page)
    audit(run, catalog)


def audit(run, catalog):
    """Every table of the demo against its files (:mod:`tests.oracles`); it divides its rows into three splits."""
    folder, limits = f"{run}/catalog", {"max_pixels": 20_000_000}
    checked = latest(f"{run}/check")
    images = pd.read_parquet(f"{checked}/images.parquet")
    assert set(images.split) == {"train", "validation", "test"}
    assert oracles.audit_images(images, catalog[["image", "label"]], folder, **limits) == []
    assert oracles.audit_errors(oracles.read(checked, "errors"), catalog, folder, **limits) == []
    groups = oracles.same_pictures(images, folder)
    assert groups, "copies were planted"
    found = oracles.findings(checked)
    assert {frozenset(group) for group in found["exact_duplicates"]["examples"]} == groups
    split_of = dict(zip(images.image, images.split, strict=True))
    leaks = {group for group in groups if len({split_of[name] for name in group}) > 1}
    assert {frozenset(group) for group in found.get("leakage", {"examples": []})["examples"]} >= leaks
    scored = latest(f"{run}/score")
    facts = read_json(f"{scored}/run.json")
    predictions = oracles.read(scored, "predictions")
    assert oracles.audit_predictions(predictions, facts["model_uri"], folder) == []
    assert oracles.audit_errors(oracles.read(scored, "errors"), catalog, folder, **limits) == []
    assert oracles.audit_ledger(oracles.read(scored, "ledger"), folder) == []
    assert oracles.audit_thresholds(predictions, facts["thresholds"]) == []
    evaluated = latest(f"{run}/evaluate")
    metrics = read_json(f"{evaluated}/metrics.json")
    held_out = set(images[(images.split == "test") & (images.error_code == "")].image)
    rows = catalog[catalog.image.isin(held_out)]
    confusion = pd.read_csv(f"{evaluated}/confusion.csv", index_col="truth")
    assert confusion.to_numpy().sum() == metrics["num_rows"] == len(rows)
    assert confusion.sum(axis=1)[lambda counts: counts > 0].to_dict() == rows.true_label.value_counts().to_dict()
    model = facts["model_uri"]
    if metrics["model_version"] == facts["model_version"]:
        predicted, _ = oracles.predict(model, [f"{folder}/{name}" for name in rows.image])
        right = sum(label == truth for (label, _), truth in zip(predicted, rows.true_label, strict=True))
        assert abs(right - confusion.to_numpy().trace()) <= 1, "a toss-up may fall either way"


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
