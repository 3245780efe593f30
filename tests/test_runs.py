"""Run directories: what their names promise."""

from retailray.config import DemoConfig
from retailray.runs import RunDirectory


def test_runs_of_one_second_sort_by_their_age(tmp_path):
    ids = [RunDirectory(DemoConfig(out=str(tmp_path))).run_id for _ in range(30)]
    assert ids == sorted(set(ids))
