"""`retailray demo`, small: the whole story in a process of its own, and its report's promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.commands.helpers import events, latest, read_text

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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
        assert (Path(run) / link).is_file(), link
    catalog = pd.read_csv(f"{run}/catalog/catalog.csv")
    scored = latest(f"{run}/score")
    tables = [pd.read_parquet(f"{scored}/{kind}").image for kind in ("predictions", "errors")]
    assert sorted(pd.concat(tables)) == sorted(catalog.image)
    assert last["rows"] == len(catalog) == last["scored"] + last["failed"]
    wrong = (catalog.label != catalog.true_label).sum()
    assert wrong == 3, "5 % of 60"
