"""The ledger without Ray: what is known is not asked again, and nothing else is taken for known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailray.config import CatalogSection
from retailray.data.corrections import SCHEMA as CORRECTIONS
from retailray.models.meta import Thresholds
from retailray.scoring.drift import OutlierModel
from retailray.scoring.formats import LEDGER_SCHEMA, RESPELLED
from retailray.scoring.image_identities import add_identities, folders_of
from retailray.scoring.ledger import PUBLISHED, RESUMED, Ledger, Reuse
from retailray.scoring.review import make_queue
from retailray.scoring.staging import stage_catalog


@pytest.fixture
def shop(tmp_path):
    """A folder of pictures and a function from catalog lines to a ledger with their listing."""
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())

    def make(*lines):
        (tmp_path / "c.csv").write_text("\n".join(["image,sku", *lines]) + "\n")
        folder = tmp_path / f"work-{len(list(tmp_path.glob('work-*')))}"
        folder.mkdir()
        catalog = stage_catalog(CatalogSection(uri=str(tmp_path / "c.csv")), folder, reserved=())
        ledger = Ledger(folder, catalog, memory_gb=0.25)
        add_identities(ledger)
        return ledger

    return make, tmp_path


def rows(folder, ledger, *given):
    """Ledger rows from (name, what is known): identity 'now' is the listing's."""
    now = {row["uri"]: row["identity"] for row in ledger.table("from listed").to_pylist()}
    table = []
    for name, facts in given:
        uri = f"{folder}/{name}.jpg"
        row = {"uri": uri, "identity": now.get(uri), "sha256": f"sha-{name}", "error_code": "", "message": ""}
        row |= {"run_id": "before", "scored_at": "then", "pred_label": None, "pred_score": None}
        table.append(row | facts)
    return [pa.Table.from_pylist(table, LEDGER_SCHEMA)]


MUG = {"pred_label": "mug", "pred_score": 0.9, "topk_labels": ["mug"], "topk_scores": [0.9]}


def todo(ledger):
    return [uri[-5] for table in ledger.todo(10) for uri in table.column("uri").to_pylist()]


def final(ledger):
    return ledger.table("select * from row_results order by row_id").to_pylist()


def test_without_a_past_every_image_is_to_score_once_in_the_catalogs_order(shop):
    make, _ = shop
    ledger = make("c.jpg,1", "a.jpg,2", "b.jpg,3")
    plan = ledger.plan()
    assert (plan.rows, plan.to_score, plan.reused, plan.images, plan.num_bytes) == (3, 3, 0, 3, 3)
    assert todo(ledger) == ["c", "a", "b"]


def test_two_spellings_that_are_one_now_are_one_image(shop):
    """Kind of fault: a row is published twice, since 0.2.0 had an image under gcs:// and under gs://."""
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2")
    [old] = rows(folder, ledger, ("a", {"identity": "old", "scored_at": "2026-01"} | MUG))
    [new] = rows(folder, ledger, ("a", {"identity": "older", "scored_at": "2025-12"} | MUG))
    pieces = [piece.replace_schema_metadata({RESPELLED: b"yes"}) for piece in (old, new)]
    ledger.add_known(pieces, origin=PUBLISHED, usable=True)
    assert ledger.plan().to_score == 2
    assert todo(ledger) == ["a", "b"]
    assert ledger.one("select identity from known") == "old", "the newest is kept"
    assert ledger.one("select count(*) from todo") == 2


def test_only_what_is_known_of_this_content_and_model_is_carried_over(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3", "d.jpg,4")
    known = rows(
        folder,
        ledger,
        ("a", MUG),
        ("b", MUG | {"identity": "another"}),
        ("c", {"error_code": "timeout", "message": "m"}),
        ("d", {"error_code": "corrupt", "message": "m"}),
        ("gone", MUG),
    )
    ledger.add_known(known, origin=PUBLISHED, usable=True)
    plan = ledger.plan()
    assert todo(ledger) == ["b", "c"], "other bytes, and an error of the moment"
    assert (plan.reused, plan.unchanged, plan.gone) == (2, 3, 1)
    other = make("a.jpg,1")
    other.add_known(rows(folder, other, ("a", MUG)), origin=PUBLISHED, usable=False)
    plan = other.plan()
    assert (todo(other), plan.reused, plan.unchanged) == (["a"], 0, 1), "of another model"


@pytest.mark.parametrize(
    ("reuse", "anew"),
    [
        (Reuse(), "c"),
        (Reuse(environment="code=1 pillow=13"), "c"),
        (Reuse(environment="code=2 pillow=13"), "bcd"),
        (Reuse(environment="code=1 pillow=13", device="cpu"), "c"),
        (Reuse(environment="code=1 pillow=13", device="cuda"), "cd"),
        (Reuse(rescore="errors"), "bcd"),
        (Reuse(rescore="all"), "abcd"),
    ],
)
def test_errors_hold_for_the_code_that_met_them_and_can_be_made_anew(shop, reuse, anew):
    """Kind of fault: a decoder is mended, and the errors of the old one are reused on for ever; also for a copy of the
    image that failed, and where the bytes are known."""
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3", "d.jpg,4")
    met = {"message": "m", "environment": "code=1 pillow=13", "device": "cpu"}
    known = rows(
        folder,
        ledger,
        ("a", MUG),
        ("b", met | {"error_code": "corrupt"}),
        ("c", met | {"error_code": "timeout"}),
        ("d", met | {"error_code": "predict_failed"}),
    )
    ledger.add_known(known, origin=PUBLISHED, usable=True, reuse=reuse)
    plan = ledger.plan()
    assert todo(ledger) == list(anew)
    assert plan.reused == 4 - len(anew)
    asked = pa.concat_tables(ledger.todo(10)).to_pylist()
    assert not any(row["known_sha256"] for row in asked), "its bytes must not be taken for known"
    ledger.add_fresh(rows(folder, ledger, *((name, MUG | {"run_id": "now"}) for name in anew)))
    ledger.resolve_results(Thresholds())
    assert {row["run_id"] for row in final(ledger) if row["image"][0] in anew} == {"now"}


def test_images_in_a_parquet_file_have_the_identity_of_their_file(tmp_path):
    path = tmp_path / "shop.parquet"

    def write():
        images = [{"bytes": name.encode(), "path": f"{name}.png"} for name in "abc"]
        pq.write_table(pa.table({"image": images}), path)
        folder = tmp_path / f"work-{len(list(tmp_path.glob('work-*')))}"
        folder.mkdir()
        ledger = Ledger(folder, stage_catalog(CatalogSection(uri=str(path)), folder, reserved=()), memory_gb=0.25)
        add_identities(ledger)
        return ledger

    ledger = write()
    identities = {row["uri"]: row["identity"] for row in ledger.table("from listed").to_pylist()}
    assert [uri.rpartition("#")[2] for uri in sorted(identities)] == ["image/0", "image/1", "image/2"]
    known = [MUG | {"uri": uri, "identity": identity, "error_code": ""} for uri, identity in identities.items()]
    ledger.add_known([pa.Table.from_pylist(known, LEDGER_SCHEMA)], origin=PUBLISHED, usable=True)
    assert ledger.plan().images == 0
    changed = write()
    changed.add_known([pa.Table.from_pylist(known, LEDGER_SCHEMA)], origin=PUBLISHED, usable=True)
    assert changed.plan().images == 3, "the file was written again"


def test_what_was_not_there_and_is_not_there_is_not_asked_for_again(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "none.jpg,2", "never.jpg,3")
    absent = {"error_code": "not_found", "message": "m"}
    ledger.add_known(rows(folder, ledger, ("none", absent), ("a", absent)), origin=PUBLISHED, usable=True)
    ledger.plan()
    assert todo(ledger) == ["a", "r"], "one that has come, and one that nobody has asked for"


def test_what_this_run_has_committed_comes_before_last_night(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2")
    ledger.add_known(rows(folder, ledger, ("a", MUG | {"run_id": "night"})), origin=PUBLISHED, usable=True)
    ledger.add_known(
        rows(folder, ledger, ("a", MUG | {"run_id": "now"}), ("b", {"sha256": "nobody's"})), origin=RESUMED, usable=True
    )
    plan = ledger.plan()
    assert (plan.resumed, plan.reused) == (1, 0)
    assert todo(ledger) == ["b"], "it equals an image whose prediction was never committed"
    ledger.add_fresh(rows(folder, ledger, ("b", MUG)))
    ledger.resolve_results(Thresholds())
    assert [row["run_id"] for row in final(ledger)] == ["now", "before"]


def test_rows_of_one_image_and_images_of_one_content_share_a_result(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3", "a.jpg,4", ",5", "../x.jpg,6")
    ledger.plan()
    fresh = rows(folder, ledger, ("a", MUG), ("b", {"sha256": "sha-a"}), ("c", {"sha256": "never came"}))
    ledger.add_fresh(fresh)
    ledger.resolve_results(Thresholds())
    found = final(ledger)
    codes = ["", "", "fetch_failed", "duplicate_id", "empty_path", "not_allowed"]
    assert [row["code"] for row in found] == codes
    assert [row["pred_label"] for row in found] == ["mug", "mug", None, None, None, None]
    assert "line 5" in found[3]["reason"]
    assert "catalog.allow" in found[5]["reason"]
    assert len(ledger.table("from image_results")) == 3


def test_decisions_are_of_the_thresholds_of_today(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3")
    scores = {"a": 0.9, "b": 0.5, "c": 0.1}
    known = rows(folder, ledger, *((name, MUG | {"pred_score": score}) for name, score in scores.items()))
    ledger.add_known(known, origin=PUBLISHED, usable=True)
    assert ledger.plan().to_score == 0
    ledger.resolve_results(Thresholds(accept=0.95, abstain=0.3))
    assert [row["decision"] for row in final(ledger)] == ["review", "review", "abstain"]
    assert all(row["reused"] for row in final(ledger))


def test_listings_find_the_folders_that_hold_images_in_each_store(tmp_path):
    (tmp_path / "c.csv").write_text(
        "image\ns3://one/x/a/1.jpg\ns3://one/x/b/2.jpg\ns3://two/y/3.jpg\nhttps://cdn/z/4.jpg\n/tmp/5.jpg\n"
    )
    catalog = stage_catalog(CatalogSection(uri=str(tmp_path / "c.csv")), tmp_path, reserved=())
    ledger = Ledger(tmp_path, catalog, memory_gb=0.25)
    assert folders_of(ledger) == ["/tmp", "https://cdn/z", "s3://one/x/a", "s3://one/x/b", "s3://two/y"]


def test_what_people_said_overrides_the_model_as_long_as_it_is_the_same_picture(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3", "d.jpg,4")
    broken = {"error_code": "corrupt", "message": "m"}
    known = rows(folder, ledger, ("a", MUG), ("b", MUG), ("c", MUG), ("d", broken))
    ledger.add_known(known, origin=PUBLISHED, usable=True)
    ledger.plan()
    said = [("a.jpg", "cup", "sha-a"), ("b.jpg", "cup", "sha-of-another"), ("c.jpg", "mug", ""), ("d.jpg", "cup", "")]
    columns = [dict.fromkeys(CORRECTIONS.names, "") | dict(zip(("item_id", "label", "sha256"), row, strict=True)) |
               {"file": "f.csv"} for row in said]  # fmt: skip
    ledger.add_corrections(pa.Table.from_pylist(columns, CORRECTIONS))
    ledger.resolve_results(Thresholds(accept=0.95))
    found = [
        (r["pred_label"], r["decision"], r["model_label"], r["corrected_in"], r["outdated"]) for r in final(ledger)
    ]
    assert found == [
        ("cup", "accept", "mug", "f.csv", False),
        ("mug", "review", "mug", None, True),
        ("mug", "accept", "mug", "f.csv", False),
        (None, None, None, None, False),
    ]
    assert final(ledger)[0]["pred_score"] == 1.0
    assert final(ledger)[0]["model_score"] == pytest.approx(0.9)
    queue = make_queue(ledger, None, limit=10)
    assert [(row["item_id"], row["reasons"]) for row in queue] == [("b.jpg", ["uncertain", "outdated"])]


def test_the_queue_has_first_what_teaches_most(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2", "c.jpg,3", "d.jpg,4", "e.jpg,5")
    tonight = [
        ("a", MUG | {"embedding": [0.0, 9.0]}),
        ("b", MUG | {"embedding": [0.1, 0.1]}),
        ("c", MUG | {"pred_score": 0.3, "embedding": [0.0, 0.0]}),
        ("d", MUG | {"embedding": [0.2, 0.0]}),
        ("e", MUG | {"pred_score": 0.2, "embedding": [0.0, 9.0]}),
    ]
    others = {"pred_label": "cup", "identity": "before"}
    before = rows(folder, ledger, ("a", MUG), ("d", MUG | others), ("e", MUG | others))
    ledger.add_known(before, origin=PUBLISHED, usable=False)
    ledger.plan()
    ledger.add_fresh(rows(folder, ledger, *tonight))
    corrected = dict.fromkeys(CORRECTIONS.names, "") | {"item_id": "e.jpg", "label": "mug", "file": "f.csv"}
    ledger.add_corrections(pa.Table.from_pylist([corrected], CORRECTIONS))  # a person has answered for e
    ledger.resolve_results(Thresholds(accept=0.8))
    usual = OutlierModel(np.zeros(2), np.ones(2), limit=4.0)
    queue = make_queue(ledger, usual, limit=10)
    assert [(row["item_id"], row["reasons"], round(row["review_priority"], 3)) for row in queue] == [
        ("c.jpg", ["uncertain"], 0.7),
        ("a.jpg", ["unusual"], 0.6),
        ("d.jpg", ["changed"], 0.6),
    ]
    assert (queue[2]["label_before"], queue[0]["label_before"]) == ("cup", None)
    assert len(make_queue(ledger, usual, limit=2)) == 2


def test_a_class_with_a_threshold_of_its_own_is_accepted_by_it(shop):
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2")
    ledger.plan()
    ledger.add_fresh(rows(folder, ledger, ("a", MUG), ("b", MUG | {"pred_label": "cup"})))
    ledger.resolve_results(Thresholds(accept=0.5, per_class={"mug": 0.95}))
    assert [row["decision"] for row in final(ledger)] == ["review", "accept"]


def test_ledgers_of_older_versions_are_read(shop):
    make, folder = shop
    ledger = make("a.jpg,1")
    [old] = rows(folder, ledger, ("a", MUG))
    ledger.add_known([old.drop_columns(["embedding"])], origin=PUBLISHED, usable=True)
    assert ledger.plan().reused == 1


def test_a_copy_never_takes_the_result_of_another_model(shop):
    """Killed after the copy was committed and before the image that it equals, on the first night of a new model."""
    make, folder = shop
    ledger = make("a.jpg,1", "b.jpg,2")
    yesterday = rows(folder, ledger, ("a", MUG | {"identity": "before", "sha256": "same"}))
    ledger.add_known(yesterday, origin=PUBLISHED, usable=False)
    ledger.add_known(rows(folder, ledger, ("b", {"sha256": "same"})), origin=RESUMED, usable=True)
    ledger.plan()
    assert sorted(todo(ledger)) == ["a", "b"]
