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
