"""`retailray demo`, small: the whole story in a process of its own, and its report's promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests import oracles
from tests.commands.helpers import events, latest, read_json, read_text

pytestmark = pytest.mark.slow


def test_demo(tmp_path):
    command = [sys.executable, "-m", "retailray", "demo", "--out", str(tmp_path), "--demo.num_images", "60"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "https_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "quiet logs"
    last = events(done.stdout)[-1]
    run = latest(str(tmp_path))
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
