"""nightly: one file, all steps, one exit code; in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from retailray.data.synthetic import write_catalog
from tests.commands.helpers import events, latest, read_json

pytestmark = pytest.mark.slow


def nightly(*arguments):
    script = Path(__file__).parents[2] / "jobs/nightly.py"
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_a_nightly_run_and_one_that_its_check_stops(small_bundle, tmp_path):
    write_catalog(str(tmp_path / "shop"), num_images=40, label_noise=0.0, seed=2)
    settings = {
        "catalog": {"uri": str(tmp_path / "shop/catalog.csv"), "max_pixels": 20_000_000},
        "model": {"uri": small_bundle[0]},
        "score": {"max_error_rate": 1.0},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = nightly("--config", tmp_path / "night.yaml")
    assert code == 0, err
    done = [event for event in events(out) if event["event"] == "summary"]
    assert [event.get("plan_only", False) for event in done] == [True, False]
    assert done[0]["to_score"] == read_json(f"{latest(str(tmp_path / 'out/scores'))}/run.json")["plan"]["to_score"]
    source = pd.read_csv(settings["catalog"]["uri"])
    assert done[1]["rows"] == len(source) == done[1]["scored"] + done[1]["failed"]
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump({"check": {"fail_on": ["missing"]}}))
    code, out, err = nightly("--config", tmp_path / "night.yaml", "--config", tmp_path / "strict.yaml")
    assert (code, "check.fail_on: found missing" in err) == (4, True)
    assert len(list((tmp_path / "out/scores").glob("run_id=*"))) == 1, "a bad catalog is not scored"
    code, out, err = nightly("--config", tmp_path / "night.yaml", "--score.max_error_rate", 0.01)
    assert code == 3, err
    assert events(out)[-1]["reused"] == done[1]["scored"], "the command line wins over the file"


def test_settings_of_splits_are_for_the_check_alone(small_bundle, tmp_path):
    """Kind of fault: one file for several commands, and scoring wants a split of every row, or keeps the check's run.

    A row without a split is scored; a check that is asked for says that it has none.
    """
    write_catalog(str(tmp_path / "shop"), num_images=12, label_noise=0.0, seed=2)
    table = pd.read_csv(tmp_path / "shop/catalog.csv")
    table.assign(part=["train", ""] * (len(table) // 2) + ["train"] * (len(table) % 2)).to_csv(
        tmp_path / "shop/catalog.csv", index=False
    )
    settings = {
        "catalog": {"uri": str(tmp_path / "shop/catalog.csv"), "max_pixels": 20_000_000, "split": "part"},
        "split": {"validation": 0.5},
        "model": {"uri": small_bundle[0]},
        "score": {"max_error_rate": 1.0},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = nightly("--config", tmp_path / "night.yaml")
    assert code == 0, err
    assert events(out)[-1]["rows"] == len(table)
    code, out, err = nightly("--config", tmp_path / "night.yaml", "--nightly.check", "true")
    assert (code, "split.* would be ignored" in err) == (2, True)
    del settings["split"]
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = nightly("--config", tmp_path / "night.yaml", "--nightly.check", "true")
    assert code == 1, err
    assert "split '' is none of" in err


def test_a_check_without_settings_runs_when_it_is_asked_for(small_bundle, tmp_path):
    write_catalog(str(tmp_path / "shop"), num_images=12, label_noise=0.0, seed=2)
    words = {
        "catalog.uri": tmp_path / "shop/catalog.csv", "catalog.max_pixels": 20_000_000, "model.uri": small_bundle[0],
        "score.max_error_rate": 1, "out": tmp_path / "out", "nightly.check": "true",
    }  # fmt: skip
    code, out, err = nightly(*[part for key, value in words.items() for part in (f"--{key}", value)])
    assert code == 0, err
    said = events(out)
    checked, planned, scored = [event for event in said if event["event"] == "summary"]
    assert (checked["command"], planned["plan_only"], scored["command"]) == ("check", True, "score")
    assert "run_id" not in planned, "the plan belongs to no run, least of all to the check's"
    assert checked["run_id"] != scored["run_id"]
    code, _, err = nightly(*[part for key, value in words.items() for part in (f"--{key}", value)],
                           "--nightly.check", "false", "--check.samples", 3)  # fmt: skip
    assert (code, "check.samples would be ignored: nightly.check is false" in err) == (2, True)


def test_usage():
    assert nightly()[0] == 2
    code, _, err = nightly("--config", "/nowhere/night.yaml")
    assert (code, "/nowhere/night.yaml" in err) == (2, True)


@pytest.mark.parametrize(
    "text", ["out: [", "- a\n- b\n", "catalog: {uri: c.csv}\n", "out:\n", "out: s3://me:secret@b/o\n"]
)
def test_a_file_that_says_nothing_sound_is_a_usage_error(text, tmp_path):
    (tmp_path / "night.yaml").write_text(text)
    code, out, err = nightly("--config", tmp_path / "night.yaml")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert "secret" not in err
    assert "retailray nightly: " in err
