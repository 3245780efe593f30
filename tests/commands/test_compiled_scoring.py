"""Nights with a compiled forward pass: the tables of a night without, and later nights do the same."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.commands.helpers import events, latest, read_json, start_command

pytestmark = pytest.mark.slow


def predictions(out):
    table = pd.read_parquet(f"{latest(str(out))}/predictions").sort_values("image").reset_index(drop=True)
    return table[["image", "pred_label", "pred_score"]]


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: apt-get install g++")
def test_a_compiled_night_has_the_tables_of_one_without(retailray, small_catalog, small_bundle, tmp_path, monkeypatch):
    """And the next night, of few images, compiles too, so that old and new rows are comparable."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(small_catalog[0], tmp_path / "shop", ignore=shutil.ignore_patterns("cache"))
    settings = {"catalog.uri": tmp_path / "shop/catalog.csv", "catalog.max_pixels": 20_000_000}
    settings |= {"model.uri": small_bundle[0], "score.max_error_rate": 1, "score.precision": "float32"}
    assert retailray("score", **settings, out=tmp_path / "plain")[0] == 0
    assert read_json(f"{latest(str(tmp_path / 'plain'))}/run.json")["forward_pass"] == "float32, not compiled"
    code, out, err = retailray("score", **settings, out=tmp_path / "out", **{"score.compile": "on"})
    assert code == 0, err
    [told] = [event for event in events(out) if event["event"] == "forward_pass"]
    assert (told["as"], told["why"]) == ("float32, compiled", "score.compile is on")
    first = latest(str(tmp_path / "out"))
    assert read_json(f"{first}/run.json")["forward_pass"] == told["as"]
    assert [Path(first, name).read_text() for name in ("precision.txt", "forward_pass.txt")] == ["float32", "compiled"]
    expected = predictions(tmp_path / "plain")
    pd.testing.assert_frame_equal(predictions(tmp_path / "out"), expected, rtol=1e-3)

    changed = expected.image[:2].tolist()
    for name, other in zip(changed, expected.image[10:12], strict=True):
        shutil.copy(tmp_path / "shop" / other, tmp_path / "shop" / name)
    code, out, err = retailray("score", **settings, out=tmp_path / "out", **{"score.dedupe": "false"})
    assert code == 0, err
    assert events(out)[-1]["scored"] == 2
    assert "go on without a compiled forward pass" not in out
    assert "forward_pass" not in [event["event"] for event in events(out)], "it was agreed on"
    assert read_json(f"{latest(str(tmp_path / 'out'))}/run.json")["forward_pass"] == "float32, compiled"


def test_without_a_compiler_the_night_goes_on(small_catalog, small_bundle, tmp_path, monkeypatch):
    """Kind of fault: what should save time ends the night where the machine has no C++ compiler."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"catalog.uri": small_catalog[0] / "catalog.csv", "catalog.max_pixels": 20_000_000}
    settings |= {
        "model.uri": small_bundle[0],
        "score.max_error_rate": 1,
        "score.compile": "on",
        "out": tmp_path / "out",
    }
    process = start_command("score", **settings)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    [told] = [event for event in events(out) if event["event"] == "forward_pass"]
    assert told["as"] in ("float32, not compiled", "bfloat16, not compiled")
    assert told["why"].startswith("it cannot be compiled here: ")
    assert events(out)[-1]["scored"] > 80
