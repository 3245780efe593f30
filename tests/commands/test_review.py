"""The review round trip: a night's queue, a person at a real browser, corrections in the next night and the week."""

import csv
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pandas as pd
import pytest

from retailray.data.synthetic import write_catalog
from tests.browser import launched
from tests.commands.helpers import latest, read_json

pytestmark = pytest.mark.slow
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog with an item whose id and label are hostile."""
    folder = tmp_path_factory.mktemp("review")
    write_catalog(str(folder), num_images=48, label_noise=0.0, seed=9)
    rows = pd.read_csv(folder / "catalog.csv", dtype=str)
    rows = rows[[(folder / name).exists() for name in rows.image.fillna("none")]].drop_duplicates("image")
    rows["item"] = [HOSTILE, *rows.image[1:]]
    rows.loc[rows.index[0], "label"] = HOSTILE
    rows.to_csv(folder / "catalog.csv", index=False, quoting=csv.QUOTE_ALL)
    return folder


@pytest.fixture
def night(shop, small_bundle, retailray):
    def score(**changes):
        settings = {
            "catalog.uri": shop / "catalog.csv",
            "catalog.id": "item",
            "catalog.max_pixels": 20_000_000,
            "model.uri": small_bundle[0],
            "score.max_error_rate": 1,
            "out": shop / "out",
        }
        code, _, err = retailray("score", **settings | changes)
        assert code == 0, err
        return latest(str(shop / "out"))

    return score


def queue_of(run):
    return [json.loads(line)["data"] for line in Path(run, "review/queue.jsonl").read_text().splitlines()]


def review(browser, run, folder):
    """A person accepts the first, takes the second choice for the second, gives the third a label of its own, takes
    the fourth back, and saves: the file, and what the page showed."""
    page = browser.new_page(accept_downloads=True)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(
        ("file:", "data:", "blob:")) else None)  # fmt: skip
    page.goto(f"file://{run}/review/index.html")
    page.fill("#reviewer", "Ann, shop 7")
    page.locator("#reviewer").blur()
    assert page.locator("#picture img").evaluate("image => image.naturalWidth") > 30
    page.keyboard.press("Enter")
    page.keyboard.press("2")
    page.keyboard.press("/")
    page.keyboard.type('hand made, 7"')
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#verdict") == "accepted"
    page.keyboard.press("u")
    assert page.inner_text("#verdict") == ""
    page.reload()  # decisions outlive the page
    assert "3 decided" in page.inner_text("#count")
    with page.expect_download() as download:
        page.keyboard.press("s")
    download.value.save_as(folder / download.value.suggested_filename)
    pwned = page.evaluate("window.pwned")
    shown = page.inner_text("body")
    page.close()
    assert not problems
    assert pwned is None
    return folder / download.value.suggested_filename, shown


def test_a_person_corrects_and_the_next_night_and_the_week_know(browser, shop, night, retailray, tmp_path):
    run = night()
    queue = queue_of(run)
    assert len(queue) == read_json(f"{run}/run.json")["review"] > 10
    tasks = read_json(f"{run}/review/label_studio.json")
    assert [task["data"] for task in tasks] == queue
    labels = ElementTree.parse(f"{run}/review/label_config.xml").findall(".//Choice")
    assert {task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks} <= {
        choice.get("value") for choice in labels
    }
    scores = [row["review_priority"] for row in queue]
    assert scores == sorted(scores, reverse=True)
    file, _ = review(browser, run, tmp_path)
    saved = pd.read_csv(file)
    first, second, third = queue[:3]
    wanted = [first["pred_label"], second["topk_labels"][1], 'hand made, 7"']
    assert saved.label.tolist() == wanted
    assert saved.item_id.tolist() == [row["item_id"] for row in queue[:3]]
    assert saved.pred_label.tolist() == [row["pred_label"] for row in queue[:3]]
    assert set(saved.reviewer) == {"Ann, shop 7"}

    run = night(**{"catalog.corrections": tmp_path})
    summary = read_json(f"{run}/run.json")
    assert (summary["counts"]["scored"], summary["corrected"]) == (0, 3), "corrections need no inference"
    table = duckdb.sql(f"from '{run}/predictions/*.parquet'").df().set_index("item")
    rows = table.loc[saved.item_id]
    assert rows.pred_label.tolist() == wanted
    assert rows.model_label.tolist() == saved.pred_label.tolist()
    assert set(rows.decision) == {"accept"}
    assert set(rows.corrected_by) == {"Ann, shop 7"}
    assert rows.corrected_at.tolist() == saved.reviewed_at.tolist()
    assert set(rows.corrected_in) == {str(file)}
    others = table.drop(index=saved.item_id)
    assert others.corrected_in.isna().all()
    assert (others.pred_label == others.model_label).all()
    assert not {row["item_id"] for row in queue_of(run)} & set(saved.item_id), "they are not asked again"

    # another picture under the same name: what was said of the old one does not hold for it
    name = table.loc[third["item_id"]].image
    other = next(image for image in table.image if image != name)
    shutil.copy(shop / other, shop / name)
    run = night(**{"catalog.corrections": tmp_path})
    table = duckdb.sql(f"from '{run}/predictions/*.parquet'").df().set_index("item")
    assert table.loc[third["item_id"]].pred_label != wanted[2]
    assert next(row["reasons"] for row in queue_of(run) if row["item_id"] == third["item_id"])[-1] == "outdated"

    catalog = shop / "catalog.csv"
    code, _, err = retailray("train", **{
        "catalog.uri": catalog, "catalog.validation_uri": catalog, "catalog.id": "item",
        "catalog.corrections": tmp_path,
        "catalog.max_pixels": 20_000_000, "model.arch": "cnn1", "transform.image_size": 16, "train.epochs": 1,
        "train.precision": "float32", "out": shop / "train",
    })  # fmt: skip
    assert code == 0, err
    bundle = read_json(f"{latest(str(shop / 'train'))}/bundle/bundle.json")
    labels = pd.read_csv(catalog).set_index("item").label
    labels[saved.item_id[:2]] = wanted[:2]  # and not the third, whose picture is another
    assert bundle["data"]["labels"] == labels.value_counts().sort_index().to_dict()


def test_hostile_names_are_shown_and_not_run(browser, night, tmp_path):
    run = night(**{"score.review_rows": 100})
    page = browser.new_page()
    page.goto(f"file://{run}/review/index.html")
    at = [row["item_id"] for row in queue_of(run)].index(HOSTILE)
    for _ in range(at):
        page.keyboard.press("ArrowRight")
    facts = page.inner_text("#facts")
    assert HOSTILE in facts
    assert page.evaluate("window.pwned") is None
    page.goto(f"file://{run}/report.html")
    assert page.evaluate("window.pwned") is None
    page.close()
