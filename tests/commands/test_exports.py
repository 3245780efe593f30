"""Exports of shops and archives through whole commands: every picture once, night after night, here and on S3."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import s3fs
from PIL import Image

from tests.commands.helpers import events, latest, read_json
from tests.conftest import save_untrained

pytestmark = pytest.mark.slow
LABELS = ("Mugs", "Bags", "Shirts")


def picture(number, *, seed=0):
    """A JPEG of its own."""
    pixels = np.random.default_rng((seed, number)).integers(0, 255, (48, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 96)).save(buffer, "JPEG")
    return buffer.getvalue()


def shopify(num_products, labels=LABELS):
    """An export as Shopify writes it: the type on a product's first row, variants without a picture."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["Handle", "Title", "Body (HTML)", "Type", "Variant SKU", "Image Src", "Image Position"])
    for k in range(num_products):
        html = f"<p>Nice\n{labels[k % 3]}</p>"
        writer.writerow([f"item-{k}", f'Item {k}, 15" wide', html, labels[k % 3], f"{k}-S", f"pics/{3 * k}.jpg", 1])
        writer.writerow([f"item-{k}", "", "", "", f"{k}-M", f"pics/{3 * k + 1}.jpg", 2])
        writer.writerow([f"item-{k}", "", "", "", f"{k}-L", "", ""])
        writer.writerow([f"item-{k}", "", "", "", "", f"pics/{3 * k + 2}.jpg", 3])
    return text.getvalue()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path):
    """Write a file below an address; the address."""
    if request.param == "local":

        def write(name, data):
            path = tmp_path / "shop" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())

        return write, str(tmp_path / "shop")
    bucket = request.getfixturevalue("bucket")

    def put(name, data):
        s3fs.S3FileSystem().pipe_file(f"{bucket}/{name}", data if isinstance(data, bytes) else data.encode())

    return put, bucket


@pytest.fixture
def score(place, small_bundle, retailray, tmp_path):
    def run(uri, **settings):
        out = str(settings.pop("out", tmp_path / "out"))
        code, said, err = retailray(
            "score",
            **{"catalog.uri": uri, "model.uri": small_bundle[0], "score.max_error_rate": 1, "out": out} | settings,
        )
        assert code in (0, 3), err
        found = latest(out)
        tables = [duckdb.sql(f"from '{found}/{kind}/*.parquet'").df() for kind in ("predictions", "errors")]
        return events(said), read_json(f"{found}/run.json"), *tables

    return run


def test_nights_of_a_shops_export(place, score):
    """Every table against the export itself, by csv; what has not changed is not scored again."""
    write, shop = place
    for number in range(27):
        write(f"pics/{number}.jpg", picture(number))
    write("products_export.csv", shopify(8))
    said, facts, predictions, errors = score(f"{shop}/products_export.csv")
    assert facts["source"]["format"] == "shopify"
    assert {"records": 32, "with_pictures": 24, "without_image": 8, "pictures": 24}.items() <= facts["source"].items()
    assert facts["counts"] == {"rows": 24, "scored": 24, "reused": 0, "failed": 0}
    assert next(event for event in said if event["event"] == "catalog")["pictures"] == 24
    audit_shopify(predictions, shopify(8), shop)
    assert errors.empty
    assert facts["label_agreement"] is not None, "labels of a product's first row hold for its others"
    _, facts, again, _ = score(f"{shop}/products_export.csv")
    assert facts["counts"] == {"rows": 24, "scored": 0, "reused": 24, "failed": 0}
    left, right = (one.drop(columns="run_id").sort_values("item_id", ignore_index=True) for one in (again, predictions))
    pd.testing.assert_frame_equal(left, right)
    write("products_export.csv", shopify(9))
    write("pics/5.jpg", picture(5, seed=1))
    _, facts, later, _ = score(f"{shop}/products_export.csv")
    assert facts["counts"] == {"rows": 27, "scored": 4, "reused": 23, "failed": 0}
    audit_shopify(later, shopify(9), shop)
    assert set(predictions.item_id) <= set(later.item_id), "ids stay as they are"


def audit_shopify(predictions, export, shop):
    """A row for every record with a picture, with all of its cells as they are."""
    records = [row for row in csv.DictReader(io.StringIO(export)) if row["Image Src"]]
    by_image = predictions.set_index("Image Src", drop=False)
    assert sorted(by_image.index) == sorted(row["Image Src"] for row in records)
    for row in records:
        found = by_image.loc[row["Image Src"]]
        for name, value in row.items():
            assert str(found[name]).removesuffix(".0") == value, (name, found[name], value)
        assert found.image_uri == f"{shop}/{row['Image Src']}"
        assert found.image_index == int(row["Image Position"]) - 1
    assert predictions.item_id.is_unique


def shard(numbers, *, seed=0):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in numbers:
            facts = json.dumps({"product": number // 3}).encode()
            for ending, data in (("jpg", picture(number, seed=seed)), ("cls", b"%d" % (number % 3)), ("json", facts)):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_nights_of_shards(place, score):
    write, shop = place
    write("shards/a.tar", shard(range(12)))
    write("shards/b.tar", shard(range(12, 24)))
    _, facts, predictions, errors = score(f"{shop}/shards")
    assert facts["counts"] == {"rows": 24, "scored": 24, "reused": 0, "failed": 0}
    assert errors.empty
    assert sorted(predictions.key) == [f"a/{n:06d}" for n in range(12)] + [f"b/{n:06d}" for n in range(12, 24)]
    _, facts, _, _ = score(f"{shop}/shards")
    assert facts["counts"]["reused"] == 24
    write("shards/b.tar", shard(range(12, 24), seed=1))
    _, facts, _, _ = score(f"{shop}/shards")
    assert facts["counts"] == {"rows": 24, "scored": 12, "reused": 12, "failed": 0}


def test_an_archive_and_loose_files_are_scored_alike(place, score):
    write, shop = place
    table = "image,label\n" + "".join(f"pics/{n}.jpg,{LABELS[n % 3]}\n" for n in range(12))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("data/train.csv", table)
        for number in range(12):
            zipped.writestr(f"data/pics/{number}.jpg", picture(number))
            write(f"loose/pics/{number}.jpg", picture(number))
    write("loose/train.csv", table)
    write("data.zip", buffer.getvalue())
    _, _, loose, _ = score(f"{shop}/loose/train.csv")
    _, facts, packed, errors = score(f"{shop}/data.zip")
    assert errors.empty
    assert facts["counts"]["rows"] == 12
    columns = ["image", "pred_label", "pred_score", "decision"]
    left, right = (table.sort_values("image", ignore_index=True)[columns] for table in (loose, packed))
    pd.testing.assert_frame_equal(left, right)


def test_check_writes_the_settings_that_it_found(retailray, tmp_path):
    folder = tmp_path / "shop"
    (folder / "pics").mkdir(parents=True)
    for number in range(24):
        (folder / f"pics/{number}.jpg").write_bytes(picture(number))
    text = shopify(8).replace("item-1,,,,1-M", "item-1,,,Bottles,1-M")
    (folder / "products_export.csv").write_text(text)
    code, _, err = retailray("check", **{"catalog.uri": folder / "products_export.csv", "out": tmp_path / "out"})
    assert code == 0, err
    run = Path(latest(str(tmp_path / "out")))
    facts = read_json(f"{run}/check.json")
    assert facts["source"]["format"] == "shopify"
    assert "Where the rows come from" in (run / "report.html").read_text()
    found = {one["name"]: one for one in facts["findings"]}
    assert found["product_labels"]["examples"] == ["item-1: Bags, Bottles"]
    assert "missing" not in found
    code, _, err = retailray("check", config=run / "catalog.yaml", out=tmp_path / "again")
    assert code == 0, err
    images = [pd.read_parquet(f"{latest(str(tmp_path / name))}/images.parquet") for name in ("out", "again")]
    pd.testing.assert_frame_equal(*images)
    # what is given by hand wins, and none is no layout
    given = {"catalog.uri": folder / "products_export.csv", "catalog.label": "Vendor", "out": tmp_path / "own"}
    code, _, err = retailray("check", **given)
    assert (code, "catalog.label = 'Vendor'" in err) == (1, True)
    code, _, err = retailray("check", **given | {"catalog.format": "none", "catalog.quoting": "standard"})
    assert code == 1
    assert "there is no such column" in err
    assert "Try --catalog.image Image Src" in err


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_evaluate_and_compare_take_an_export(place, score, small_bundle, retailray, tmp_path):
    """Rows, labels and products as csv and pandas find them; predictions as `score` publishes them."""
    write, folder = place
    labels = small_bundle[1][:3]
    export = shopify(8, labels)
    write("products_export.csv", export)
    for number in range(24):
        write(f"pics/{number}.jpg", picture(number))
    truth = {row["Handle"]: row["Type"] for row in csv.DictReader(io.StringIO(export)) if row["Type"]}
    uri = f"{folder}/products_export.csv"
    other = save_untrained(tmp_path, "cnn1", seed=1)[0]
    told = {}
    for name, bundle in (("mine", small_bundle[0]), ("other", other)):
        *_, predictions, errors = score(uri, **{"model.uri": bundle, "out": tmp_path / name})
        assert errors.empty
        told[name] = predictions.set_index("item_id")
    right = {name: table.pred_label == table.Handle.map(truth) for name, table in told.items()}
    settings = {"catalog.uri": uri, "model.uri": small_bundle[0]}
    code, _, err = retailray("evaluate", **settings, **{"evaluate.split": "all", "out": tmp_path / "e"})
    assert code == 0, err
    run = latest(str(tmp_path / "e"))
    metrics = read_json(f"{run}/metrics.json")
    assert metrics["num_rows"] == 24
    assert metrics["top1"] == pytest.approx(right["mine"].mean())
    assert metrics["num_unlabelled"] == 0, "variants have the label of their product"
    confusion = pd.read_csv(f"{run}/confusion.csv").melt("truth", var_name="predicted", value_name="rows")
    found = confusion[confusion.rows > 0].set_index(["truth", "predicted"]).rows.sort_index().to_dict()
    assert (
        found
        == pd.crosstab(told["mine"].Handle.map(truth), told["mine"].pred_label).stack().loc[lambda n: n > 0].to_dict()
    )
    settings |= {"compare.baseline": other, "compare.split": "all", "out": tmp_path / "c"}
    code, _, err = retailray("compare", **settings)
    assert code == 0, err
    run = latest(str(tmp_path / "c"))
    changes = pd.read_parquet(f"{run}/changes.parquet")
    differ = told["mine"].pred_label != told["other"].pred_label.reindex(told["mine"].index)
    assert set(changes.id) == set(differ[differ].index)
    assert (changes.set_index("id").label == told["mine"].Handle.map(truth).reindex(changes.id)).all()


FORMULA = "=HYPERLINK(1)"


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    (folder / "pics").mkdir(parents=True)
    for number in range(24):
        (folder / f"pics/{number}.jpg").write_bytes(picture(number))
    return folder


def answers_of(predictions, by):
    """What pandas makes of the published rows: the accepted label where all accepted pictures agree."""
    found = {}
    for key, rows in predictions.groupby(by, sort=False):
        accepted = set(rows.pred_label[rows.decision == "accept"])
        best = rows.loc[rows.pred_score.idxmax()]
        if len(accepted) == 1:
            found[key] = accepted.pop(), "accept"
        else:
            found[key] = best.pred_label, "review" if accepted else best.decision
    return found


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_csv_and_xlsx_have_a_row_a_record(place, shop, score, tmp_path):
    """Read by other programs: every cell of the user's, and the answers that pandas makes of the published rows."""
    rows = [["ID", "SKU", "Name", "Categories", "Images"]]
    for k in range(8):
        images = ", ".join(f"pics/{3 * k + at}.jpg" for at in range(3)) if k != 7 else "pics/none.jpg"
        rows.append([k, f"0{k}", FORMULA if k == 3 else "ünï, x", f"Shop > {LABELS[k % 3]}, Sale", images])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (shop / "export.csv").write_text(text.getvalue())
    _, facts, predictions, _ = score(shop / "export.csv", **{"score.export": "csv"})
    run = Path(latest(str(tmp_path / "out")))
    assert facts["exported"] == ["export/answers.csv", "export/errors.csv", "export/to_review.csv"]
    answers = list(csv.DictReader((run / "export/answers.csv").read_text(encoding="utf-8-sig").splitlines()))
    told = answers_of(predictions, "ID")
    assert [(row["answer_label"], row["answer_decision"]) for row in answers] == [told[k] for k in range(7)]
    for row, source in zip(answers, rows[1:], strict=False):
        own = [str(value) for value in source]
        found = [row[name] for name in rows[0]]
        assert [one.removeprefix("'") for one in found] == own
        assert not any(value.startswith(("=", "+", "-", "@")) for value in row.values())
    failed = list(csv.DictReader((run / "export/errors.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [(row["ID"], row["error_code"]) for row in failed] == [("7", "not_found")]
    doubtful = (run / "export/to_review.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(doubtful) - 1 == sum(decision != "accept" for _, decision in told.values())
    import openpyxl

    score(shop / "export.csv", **{"score.export": "xlsx"})
    book = openpyxl.load_workbook(Path(latest(str(tmp_path / "out"))) / "export/catalog.xlsx")
    assert book.sheetnames == ["Answers", "Errors", "To review"]
    head, *sheet = book["Answers"].iter_rows()
    names = [cell.value for cell in head]
    assert len(sheet) == 7
    assert {cell.data_type for row in sheet for cell in row} <= {"s", "n"}, "no formulas"
    assert sheet[3][names.index("Name")].value == FORMULA
    assert [row[names.index("SKU")].value for row in sheet] == [f"0{k}" for k in range(7)]
    assert [row[names.index("answer_label")].value for row in sheet] == [told[k][0] for k in range(7)]


@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize("accept", [0.0, 1.0])
def test_a_layout_is_read_back_as_the_source_was(accept, place, shop, score, small_bundle, tmp_path):
    """Accepted answers in the words of the source; every other cell as it was, byte for byte."""
    from retailray.models.bundle import load_bundle, save_bundle
    from retailray.models.meta import Thresholds

    bundle = load_bundle(str(small_bundle[0]))
    meta = bundle.meta.model_copy(update={"thresholds": Thresholds(accept=accept, abstain=0.0)})
    save_bundle(str(tmp_path / "bundle"), meta, bundle.state)
    source = shopify(8).replace("item-2,", "item-=2,")
    (shop / "products_export.csv").write_text(source)
    settings = {"score.export": "layout", "model.uri": tmp_path / "bundle"}
    _, _, predictions, _ = score(shop / "products_export.csv", **settings)
    run = Path(latest(str(tmp_path / "out")))
    found = list(csv.DictReader(io.StringIO((run / "export/layout.csv").read_text())))
    records = [row for row in csv.DictReader(io.StringIO(source)) if row["Type"]]
    assert [row["Handle"] for row in found] == [row["Handle"] for row in records]
    told = answers_of(predictions, "Handle")
    for row, record in zip(found, records, strict=True):
        label, decision = told[record["Handle"]]
        assert row["Type"] == (label if decision == "accept" else record["Type"])
    assert list(found[0]) == ["Handle", "Type"]
    if accept:
        assert [row["Type"] for row in found] == [row["Type"] for row in records], "nothing is accepted"


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_feed_goes_back_with_its_own_paths(place, shop, score, small_bundle, tmp_path, retailray):
    rows = ["id\ttitle\timage_link\tproduct_type"]
    rows += [f'id{k}\t5" "wide"\tpics/{k}.jpg\tHome > 5" {LABELS[k % 3]} > {LABELS[k % 3]}' for k in range(8)]
    (shop / "feed.tsv").write_text("\n".join(rows) + "\n")
    score(shop / "feed.tsv", **{"score.export": "layout"})
    lines = (Path(latest(str(tmp_path / "out"))) / "export/layout.tsv").read_text().splitlines()
    assert lines[0] == "id\tproduct_type"
    assert [line.split("\t")[0] for line in lines[1:]] == [f"id{k}" for k in range(8)]
    # without a column that says which product it is, nothing is scored first
    (shop / "plain.csv").write_text("image,label\npics/1.jpg,Mugs\n")
    settings = {"catalog.uri": shop / "plain.csv", "model.uri": small_bundle[0], "score.export": "layout"}
    code, _, err = retailray("score", **settings, out=tmp_path / "none")
    assert code == 2
    assert "catalog.id or catalog.group" in err


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_on_ray_shards_and_exports_come_out_the_same(place, score, ray_session_cpus):
    """Addresses within archives travel to workers, and records with several pictures are divided in the driver."""
    write, folder = place
    for number in range(24):
        write(f"pics/{number}.jpg", picture(number))
    write("products_export.csv", shopify(8))
    write("shards/a.tar", shard(range(24)))
    for uri in (f"{folder}/products_export.csv", f"{folder}/shards"):
        tables = []
        for engine in ("ray", "inline"):
            *_, predictions, errors = score(uri, **{"cluster.engine": engine, "out": f"{folder}/{engine}"})
            assert errors.empty
            tables.append(predictions.sort_values("item_id", ignore_index=True).drop(columns=["run_id", "scored_at"]))
        pd.testing.assert_frame_equal(*tables, check_exact=False, atol=1e-3)


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_other_categories_of_a_product_stay(place, shop, score, tmp_path):
    """Kind of fault: the cell of the commonest product with this label is written, with categories of another."""
    rows = [["ID", "SKU", "Name", "Categories", "Images"]]
    cells = ["Shop > Mugs, New, Gifts", "Shop > Bags, Sale", "Shop > Bags, Sale", "", "Sale > Mugs"]
    rows += [[k, k, "N", cell, f"pics/{k}.jpg"] for k, cell in enumerate(cells)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (shop / "export.csv").write_text(text.getvalue())
    (shop / "corrections.csv").write_text("item_id,label\n0,Bags\n3,Bags\n4,Mugs\n")
    score(shop / "export.csv", **{"score.export": "layout", "catalog.corrections": shop / "corrections.csv"})
    written = list(csv.reader((Path(latest(str(tmp_path / "out"))) / "export/layout.csv").read_text().splitlines()))
    told = {row[0]: row[1] for row in written[1:]}
    assert told["0"] == "Shop > Bags, New, Gifts"
    assert told["3"] == "Shop > Bags"
    assert told["4"] == "Sale > Mugs", "it is right, and stays as it was"
