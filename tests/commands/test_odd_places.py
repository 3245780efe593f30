"""Commands where the machine is set up in odd ways, and what is left of an error that nobody foresaw."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from tests.commands.helpers import events, latest

pytestmark = pytest.mark.slow


def score(catalog, bundle, out, *arguments, **environment):
    command = [sys.executable, "-m", "retailray", "score", "--catalog.uri", str(catalog), "--model.uri", bundle]
    command += ["--catalog.max_pixels", "20000000", "--score.max_error_rate", "1", "--out", str(out), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "RAY_AUTH_MODE")}
    return subprocess.run(command, capture_output=True, text=True, env=env | environment, timeout=300)


def test_a_bare_environment(small_catalog, small_bundle, tmp_path):
    """No home to write to, no locale, a proxy that is not there, and a long folder for temporary files.

    The latter with Ray: :mod:`tests.commands.test_interrupt`.
    """
    deep = tmp_path / ("long" * 20) / ("folder" * 10)
    deep.mkdir(parents=True)
    bare = {"HOME": "/nonexistent", "LANG": "C", "LC_ALL": "C", "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9", "TMPDIR": str(deep)}  # fmt: skip
    done = score(small_catalog[0] / "catalog.csv", small_bundle[0], tmp_path / "out", **bare)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert events(done.stdout)[-1]["scored"] > 80


def test_an_unforeseen_error_leaves_its_traceback(retailray, small_catalog, small_bundle, tmp_path, monkeypatch):
    """Kind of fault: one line is shown, and what would explain it is gone."""
    settings = {"catalog.uri": small_catalog[0] / "catalog.csv", "model.uri": small_bundle[0], "out": tmp_path}
    settings |= {"catalog.max_pixels": 20_000_000, "score.max_error_rate": 1}
    with monkeypatch.context() as patch:
        patch.setattr("retailray.scoring.score.write_tables", lambda *_, **__: 1 / 0)
        code, _, err = retailray("score", **settings)
    assert (code, err.count("\n")) == (1, 1)
    [file] = tmp_path.glob("run_id=*/traceback.txt")
    assert str(file) in err
    assert "ZeroDivisionError" in file.read_text()
    assert "score.py" in file.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("retailray.scoring.chunks.decode", lambda *_, **__: 1 / 0)
        code, _, err = retailray("score", **settings | {"out": tmp_path / "b"})
    assert code == 1
    assert "scoring stopped: division by zero" in err
    [file] = (tmp_path / "b").glob("run_id=*/traceback.txt")
    assert str(file) in err
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    assert len(pd.read_parquet(f"{latest(str(tmp_path))}/predictions")) > 80
