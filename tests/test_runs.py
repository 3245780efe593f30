"""Run directories: what their names promise."""

import pytest

from retailray.config import DemoConfig
from retailray.errors import RetailrayError
from retailray.runs import RunDirectory


def test_runs_of_one_second_sort_by_their_age(tmp_path):
    ids = [RunDirectory(DemoConfig(out=str(tmp_path))).run_id for _ in range(30)]
    assert ids == sorted(set(ids))


def test_a_run_that_is_to_be_alone_does_not_move_what_another_moved(tmp_path):
    config = DemoConfig(out=str(tmp_path))
    ours, theirs = RunDirectory(config), RunDirectory(config)
    theirs.publish({}, alone=True)
    with pytest.raises(RetailrayError, match="moved by another run"):
        ours.publish({}, alone=True)
    assert (tmp_path / "LATEST").read_text() == f"run_id={theirs.run_id}"
    ours.publish({})
    assert (tmp_path / "LATEST").read_text() == f"run_id={ours.run_id}"
