"""Nights on every cloud: the published table is the one that a local folder gives, row by row, and nothing is fetched
twice."""

import json
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

from retailray import storage
from retailray.storage.opening import store_of
from tests.commands.helpers import events, words_of

pytestmark = pytest.mark.slow
STAMP = ["run_id", "scored_at"]
# how people write the same bucket; 0.2.0 fetched every image every night where it was not the first of each
CLOUDS = {
    "s3": ("s3://{}", "s3a://{}"),
    "gs": ("gs://{}", "gcs://{}"),
    "az": ("az://{}", "abfs://{}", "abfss://{}@devstoreaccount1.dfs.core.windows.net"),
}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "gs", "az"])
def place(request, small_catalog, tmp_path_factory):
    """The made-up catalog in a bucket; its address, and how else it is written."""
    kind = request.param
    if kind == "local":
        folder = tmp_path_factory.mktemp("place")
        shutil.copytree(small_catalog[0], folder / "shop")
        return str(folder / "shop"), [str(folder / "shop")]
    request.getfixturevalue({"s3": "s3_endpoint", "gs": "google", "az": "azure"}[kind])
    name = f"shop{abs(hash(request.node.nodeid)) % 10**9}"
    store_of(f"{kind}://{name}")[0].fs.mkdir(name)
    for path in small_catalog[0].rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{kind}://{name}/shop/{path.relative_to(small_catalog[0])}", path.read_bytes())
    spellings = [f"{form.format(name)}/shop" for form in CLOUDS[kind]]
    return spellings[0], spellings


def published(out):
    """Predictions and errors of the newest run below an address, read with the store's own client, and run.json."""
    run = storage.join(out, storage.read_bytes(f"{out}/LATEST").decode())
    tables = []
    for folder in ("predictions", "errors"):
        files = [name for name in storage.list_files(f"{run}/{folder}") if name.endswith(".parquet")]
        parts = []
        for name in files:
            with storage.open_binary(name) as file:
                parts.append(pd.read_parquet(file))
        tables.append(pd.concat(parts).drop(columns=STAMP, errors="ignore").sort_values("image", ignore_index=True))
    return *tables, json.loads(storage.read_bytes(f"{run}/run.json"))


def settings(shop, out, bundle):
    return {
        "catalog.uri": f"{shop}/catalog.csv",
        "catalog.max_pixels": 20_000_000,
        "model.uri": bundle,
        "score.max_error_rate": 1,
        "out": out,
    }


@pytest.fixture(scope="module")
def expected(small_catalog, small_bundle, tmp_path_factory):
    """What a local folder gives, audited against its files elsewhere (test_oracles.py)."""
    from retailray.cli import main

    out = tmp_path_factory.mktemp("expected")
    assert main(words_of("score", settings(small_catalog[0], out, small_bundle[0]), inline=True)) == 0
    return published(str(out))[:2]


def same_tables(found, expected, shop):
    """Row by row, but for where the images are and what a message says of it."""
    for mine, theirs in zip(found, expected, strict=True):
        for table in (mine, theirs):
            table.drop(columns=["image_uri", "message"], errors="ignore", inplace=True)
        pd.testing.assert_frame_equal(mine, theirs)
    if "image_uri" in found[0].columns:
        assert found[0].image_uri.str.startswith(shop).all()


def test_nights(place, small_bundle, expected, retailray):
    """First, unchanged, one changed, and under every way in which people write the bucket."""
    shop, spellings = place
    out = f"{storage.parent(shop)}/out"
    code, _, err = retailray("score", **settings(shop, out, small_bundle[0]))
    assert code == 0, err
    *tables, facts = published(out)
    same_tables([table.copy() for table in tables], [table.copy() for table in expected], shop)
    assert facts["counts"]["reused"] == 0
    for spelling in spellings:
        code, said, err = retailray("score", **settings(spelling, out, small_bundle[0]))
        assert code == 0, err
        [plan] = [event for event in events(said) if event["event"] == "plan"]
        assert plan["to_score"] == 0, (spelling, plan)
        *again, facts = published(out)
        assert facts["counts"]["scored"] == 0
        same_tables(again, [table.copy() for table in expected], shop)
    good = tables[0].image.iloc[0]
    another = storage.read_bytes(f"{shop}/{tables[0].image.iloc[7]}")
    storage.write_bytes(f"{shop}/{good}", another)
    code, said, err = retailray("score", **settings(spellings[-1], out, small_bundle[0]))
    assert code == 0, err
    [plan] = [event for event in events(said) if event["event"] == "plan"]
    assert plan["to_score"] == 1
    *later, facts = published(out)
    assert facts["counts"]["reused"] == len(tables[0]) - 1
    assert later[0].set_index("image").pred_label[good] == tables[0].pred_label.iloc[7]


# killed by the system when the first results are committed, and the next are about to be
KILLED = """
import os, signal, sys, threading
from retailray import storage
from retailray.cli import main
write, committed, lock = storage.write_bytes, [], threading.Lock()
def killed(address, *arguments, **options):
    if "/scored/" not in address:
        return write(address, *arguments, **options)
    with lock:
        if committed:
            os.kill(os.getpid(), signal.SIGKILL)
        write(address, *arguments, **options)
        committed.append(address)
storage.write_bytes = killed
main(sys.argv[1:])
"""


def test_a_killed_night_is_resumed(place, small_bundle, expected, retailray):
    """SIGKILL after the first commit: what is committed is not scored again, and the table is whole."""
    shop, _ = place
    out = f"{storage.parent(shop)}/killed"
    values = settings(shop, out, small_bundle[0])
    words = words_of("score", values, inline=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not storage.exists(f"{out}/LATEST"), "nobody sees half a night"
    code, said, err = retailray("score", **values)
    assert code == 0, err
    [plan] = [event for event in events(said) if event["event"] == "plan"]
    assert plan["resumed"] > 20
    assert 0 < plan["to_score"] < 80
    *tables, _ = published(out)
    same_tables(tables, [table.copy() for table in expected], shop)
