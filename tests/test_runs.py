"""Run directories: what their names promise."""

import pytest
import yaml

from retailray import storage
from retailray.config import DemoConfig, TrainConfig
from retailray.errors import RetailrayError, StorageError
from retailray.runs import RunDirectory, list_runs, unfinished


def test_runs_of_one_second_sort_by_their_age(tmp_path):
    ids = [RunDirectory(DemoConfig(out=str(tmp_path))).run_id for _ in range(30)]
    assert ids == sorted(set(ids))


def test_a_run_that_is_to_be_alone_does_not_move_what_another_moved(tmp_path):
    config = DemoConfig(out=str(tmp_path))
    ours, theirs = RunDirectory(config), RunDirectory(config)
    theirs.publish({}, alone=True)
    ours.write("scored/part", b"")
    with pytest.raises(RetailrayError, match="moved by another run"):
        ours.publish({}, alone=True, clear=["scored"])
    assert not storage.exists(ours.path("scored")), "the run is complete all the same"
    assert (tmp_path / "LATEST").read_text() == f"run_id={theirs.run_id}"
    ours.publish({})
    assert (tmp_path / "LATEST").read_text() == f"run_id={ours.run_id}"


def test_what_cannot_be_cleared_is_said_and_the_run_is_published(tmp_path, monkeypatch, capsys):
    run = RunDirectory(DemoConfig(out=str(tmp_path)))

    def refuse(address):
        raise StorageError(f"{address}: access denied")

    monkeypatch.setattr(storage, "remove_folder", refuse)
    run.publish({}, clear=["scored"])
    assert "scored: access denied" in capsys.readouterr().out
    assert (tmp_path / "LATEST").exists()


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_runs_are_listed_with_what_lies_in_them(where, tmp_path, request):
    out = str(tmp_path / "out[1]") if where == "local" else f"{request.getfixturevalue('bucket')}/out[1]"
    assert list_runs(out) == {}
    runs = [RunDirectory(DemoConfig(out=out)) for _ in range(3)]
    runs[0].publish({})
    storage.write_bytes(f"{out}/run_id=no-folder", b"")
    storage.write_bytes(f"{out}/run_id=not-ours/x", b"")
    found = list_runs(out)
    assert list(found) == [f"run_id={run.run_id}" for run in reversed(runs)]
    assert found[f"run_id={runs[0].run_id}"] == {"config.yaml", "run.json", "_SUCCESS"}


@pytest.mark.parametrize("model", [{}, {"arch": "cnn1"}])
def test_a_run_of_a_version_with_fewer_settings_is_gone_on_with(model, tmp_path):
    """Kind of fault: every new setting makes runs that were interrupted before it be started anew."""
    sections = {"catalog": {"uri": str(tmp_path / "c.csv")}, "out": str(tmp_path / "out"), "model": model}
    config = TrainConfig.model_validate(sections)
    run = RunDirectory(config)
    path = tmp_path / "out" / f"run_id={run.run_id}" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["train"]["device_batch_size"], settings["train"]["clip_grad_norm"]
    path.write_text(yaml.safe_dump(settings))
    assert unfinished(config, ignoring=["train.resume"]) == run.run_id
    other = config.model_copy(update={"train": config.train.model_copy(update={"clip_grad_norm": 1.0})})
    assert unfinished(other, ignoring=["train.resume"]) is None
    for text in ("", "[1, 2]", "train: {no_such_setting: 1}", "\t{"):
        path.write_text(text)
        assert unfinished(config, ignoring=["train.resume"]) is None
