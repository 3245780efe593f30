"""What a search draws, what a trial is, and what both rest on; without Ray."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from ray.exceptions import RayActorError

from retailray.config import ClusterSection, Domain, TuneConfig, TuneSection, arguments
from retailray.data.catalog import read_catalog
from retailray.data.decoding import (
    CODE,
    MESSAGE,
    PIXELS,
    SLOT,
    DecodeSpec,
    decode_rows,
    pixels_to_numpy,
    transport_table,
    with_errors,
)
from retailray.data.images import Limits
from retailray.data.row_ids import ROW_ID
from retailray.data.scaling import Scaling
from retailray.errors import CapacityError, ConfigError
from retailray.execution import Capacity, plan_trials
from retailray.storage import Access
from retailray.training.cache import store
from retailray.training.cache.store import CacheSpec
from retailray.training.cache.views import ViewSpec, decode_views
from retailray.training.optim import load_optimizer, make_schedule
from retailray.tuning import plots
from retailray.tuning.trial import Trial, write_record
from retailray.tuning.trials_table import TrialsTable
from retailray.tuning.tuner import _within


def make_config(space, **sections):
    return TuneConfig(out="o", catalog={"uri": "c.csv"}, tune={"space": space}, **sections)


class TestSpace:
    def test_a_trial_has_the_drawn_settings_and_what_means_nothing_beside_them_is_left_out(self):
        config = make_config({"model.trainable": ["head", "last2"]}, train={"backbone_lr": 0.005, "num_views": 4})
        drawn = {"model.trainable": "head", "train.backbone_lr": 0.002, "train.head_lr": 0.01}
        trial = config.trial(drawn)
        assert (trial.model.trainable, trial.train.head_lr, trial.train.num_views) == ("head", 0.01, 4)
        assert config.effective(drawn) == {"model.trainable": "head", "train.backbone_lr": None, "train.head_lr": 0.01}
        assert config.effective({"train.head_lr": "1e-3"}) == {"train.head_lr": 0.001}, "YAML reads 1e-3 as text"
        deeper = config.trial(drawn | {"model.trainable": "last2"})
        assert deeper.train.backbone_lr == 0.002

    def test_the_default_space_is_freeze_depth_and_both_rates(self):
        assert list(make_config({}).space) == ["model.trainable", "train.head_lr", "train.backbone_lr"]
        assert list(make_config({}, model={"weights": "none"}).space) == ["train.head_lr", "train.backbone_lr"]

    @pytest.mark.parametrize(
        ("arch", "train", "head", "backbone"),
        [
            ("resnet50", {}, (3e-4, 3e-2), (1e-4, 3e-3)),
            ("vit_b_16", {}, (3e-4, 3e-2), (5e-6, 1.5e-4)),
            ("vit_b_16", {"optimizer": "sgd"}, (3e-4, 3e-2), (1e-4, 3e-3)),
            ("vit_b_16", {"batch_size": 256}, (6e-4, 6e-2), (1e-5, 3e-4)),
            ("resnet50", {"batch_size": 256, "optimizer": "sgd"}, (1.2e-3, 1.2e-1), (4e-4, 1.2e-2)),
        ],
    )
    def test_the_default_rates_are_searched_around(self, arch, train, head, backbone):
        """Kind of fault: a search that never meets the rates which ``train`` itself would take."""
        space = make_config({}, model={"arch": arch}, train=train).space
        assert space["train.head_lr"].loguniform == pytest.approx(head)
        assert space["train.backbone_lr"].loguniform == pytest.approx(backbone)

    @pytest.mark.parametrize(
        ("space", "said"),
        [
            ({"train.epochs": [1]}, "train.epochs cannot be searched; these can: model.arch"),
            ({"train.head_lr": [0.1, -1]}, "train.head_lr = -1: Input should be greater than 0"),
            ({"train.head_lr": {"uniform": [-1, 0.1]}}, "train.head_lr = -1"),
            ({"train.head_lr": {"loguniform": [0, 1]}}, "loguniform needs positive numbers"),
            ({"train.head_lr": {"uniform": [1, 1]}}, "needs a smaller number, then a larger one"),
            ({"train.head_lr": {"normal": [0, 1]}}, "Extra inputs"),
            ({"train.head_lr": {}}, "give one of choice, uniform, loguniform, int"),
            ({"model.trainable": ["lasty"]}, "model.trainable = 'lasty'"),
            ({"transform.random_erasing_prob": {"uniform": [0, 1]}}, "transform.random_erasing_prob needs a choice"),
        ],
    )
    def test_what_cannot_be_drawn_is_named(self, space, said):
        with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
            make_config(space)

    def test_a_grid_needs_choices(self):
        with pytest.raises(ValidationError, match=r"grid needs a choice for train\.head_lr"):
            TuneConfig(out="o", catalog={"uri": "c.csv"}, tune={"searcher": "grid"})

    def test_the_command_line_and_a_file_say_the_same(self, tmp_path):
        file = tmp_path / "search.yaml"
        file.write_text(
            "catalog: {uri: c.csv}\nout: o\ntune:\n  space:\n    train.batch_size: {int: [8, 16]}\n"
            "    train.head_lr: {loguniform: [1.0e-4, 1.0e-2]}\n    model.trainable: [head, last1]\n"
        )
        space = '{"train.batch_size": {"int": [8, 16]}, "train.head_lr": {"loguniform": [1e-4, 1e-2]}, '
        space += '"model.trainable": ["head", "last1"]}'
        line = arguments.parse("tune", ["--catalog.uri", "c.csv", "--out", "o", "--tune.space", space])
        assert line == arguments.parse("tune", ["--config", str(file)])
        saved = TuneConfig(**line.model_dump(mode="json"))
        assert saved == line, "a saved config reads back"

    def test_settings_of_other_commands_are_refused_on_the_command_line(self):
        with pytest.raises(ConfigError, match=r"train\.resume \(command line\): tune does not read it"):
            arguments.parse("tune", ["--catalog.uri", "c.csv", "--out", "o", "--train.resume"])


class TestPlanTrials:
    def test_trials_take_half_of_the_cpus_whatever_their_number(self):
        plan = plan_trials(Capacity(4, 0, 1e9), ClusterSection(), TuneSection(max_concurrent=32))
        assert plan.num_concurrent == 32
        assert plan.num_concurrent * plan.cpus <= 2
        assert plan.torch_threads == 1

    def test_fractions_share_a_gpu(self):
        plan = plan_trials(Capacity(16, 2, 1e9), ClusterSection(), TuneSection(gpus_per_worker=0.25))
        assert (plan.num_concurrent, plan.gpus) == (8, 0.25)

    def test_one_gpu_for_two_workers_is_refused_and_so_is_half_of_one(self):
        one = Capacity(16, 1, 1e9)
        with pytest.raises(CapacityError, match=r"2 x \(1 CPUs, 1 GPUs\)"):
            plan_trials(one, ClusterSection(), TuneSection(workers_per_trial=2))
        with pytest.raises(CapacityError, match=r"tune.gpus_per_worker = 0.5 with tune.workers_per_trial = 2"):
            plan_trials(one, ClusterSection(), TuneSection(workers_per_trial=2, gpus_per_worker=0.5))

    def test_what_cannot_start_is_refused_with_the_numbers(self):
        tune = TuneSection(workers_per_trial=3, cpus_per_worker=2)
        with pytest.raises(CapacityError, match=r"3 x \(2 CPUs, 0 GPUs\), and the Ray cluster has 4 CPUs"):
            plan_trials(Capacity(4, 0, 1e9), ClusterSection(), tune)


@pytest.mark.parametrize(("side", "augment", "rounding"), [(36, "standard", 0), (32, "none", 2), (28, "none", 2)])
def test_views_from_kept_pixels_are_those_of_the_images(small_catalog, tmp_path, side, augment, rounding):
    from retailray.config import CatalogSection

    catalog = read_catalog(CatalogSection(uri=f"{small_catalog[0]}/catalog.csv", max_pixels=20_000_000))
    table = transport_table(catalog).append_column(SLOT, pa.array(np.arange(len(catalog))))
    limits = Limits(20_000_000, 20.0)
    rows = table.num_rows
    spec = CacheSpec(str(tmp_path), "a" * 32, rows, 1, (3, 36, 36), "uint8")
    decoded = decode_rows(table, spec=DecodeSpec(Scaling(36, 36), limits), access=Access())
    pixels = np.stack([np.frombuffer(value, np.uint8).reshape(3, 36, 36) for value in decoded[PIXELS].to_pylist()])
    store.create(spec)
    store.write_rows(spec, np.arange(rows), pixels)
    store.finish(spec, decoded.select([CODE, MESSAGE]).rename_columns(["error_code", "message"]))
    known = with_errors(table, decoded[CODE].to_pylist(), decoded[MESSAGE].to_pylist())
    size = 24 if augment == "standard" else side
    views = ViewSpec(DecodeSpec(Scaling(36, side), limits), augment, 0.0, size, 3, seed=1)
    direct = decode_views(table, spec=views, keep=[ROW_ID], access=Access())
    from_kept = decode_views(known, spec=views, keep=[ROW_ID], access=Access(), decoded=spec)
    assert direct.drop_columns([PIXELS]).equals(from_kept.drop_columns([PIXELS]))
    left, right = (pixels_to_numpy(part.column(PIXELS), size).astype(int) for part in (direct, from_kept))
    assert left.shape == (3 * rows, 3, size, size)
    assert np.abs(left - right).max() <= rounding
    assert left.max() > 200


def test_a_population_goes_on_from_another_member_with_its_own_rates():
    def make(rate, decay):
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([{"params": [parameter], "lr": rate, "weight_decay": decay}])
        return parameter, optimizer, make_schedule(optimizer, 20, 0.2)

    def run(parameter, optimizer, schedule, steps):
        rates = []
        for _ in range(steps):
            parameter.grad = torch.ones(3)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    parameter, optimizer, schedule = make(0.1, 0.0)
    run(parameter, optimizer, schedule, 8)
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    expected = run(parameter, optimizer, schedule, 12)

    def gone_on(rate, decay):
        parameter, optimizer, schedule = make(rate, decay)
        buffer.seek(0)
        load_optimizer(optimizer, schedule, torch.load(buffer))
        assert optimizer.param_groups[0]["weight_decay"] == decay
        return run(parameter, optimizer, schedule, 12)

    assert gone_on(0.1, 0.0) == expected
    np.testing.assert_allclose(gone_on(0.05, 0.3), np.array(expected) / 2, rtol=1e-6)


class TestPlots:
    trials = pd.DataFrame(
        {
            "trial": [1, 2, 3],
            "status": ["finished", "stopped", "failed"],
            "validation_top1": [0.9, 0.5, 0.4],
            "seconds": [3.0, 0.01, 1.0],
            "model.trainable": ["last10", "head", "last2"],
            "train.head_lr": [1e-2, 1e-4, 1e-2],
            "train.backbone_lr": [1e-3, None, 2e-3],
            "train.class_weights": ["balanced", "none", "balanced"],
            "model.arch": ["a$b", "b", "b"],
        }
    )
    epochs = pd.DataFrame({"trial": [1, 1, 2, 3], "epoch": [1, 2, 1, 1], "validation_top1": [0.2, 0.9, 0.5, 0.4]})

    def pictures(self, trials):
        metric = "validation_top1"
        names = ["model.trainable", "train.head_lr", "train.backbone_lr", "train.class_weights", "model.arch"]
        yield plots.parallel_coordinates(trials, names, metric)
        yield plots.depth_by_rate(trials, "model.trainable", "train.head_lr", metric)
        yield plots.learning_curves(self.epochs, trials, metric)
        yield plots.accuracy_by_cost(trials, metric)
        speeds = {"a$b": {"images_per_s": 100.0, "parameters": 3e6}, "b": {"images_per_s": 200.0, "parameters": 1e6}}
        yield plots.backbones_by_speed(trials, metric, "model.arch", speeds)

    @pytest.mark.parametrize("rows", [3, 1])
    def test_every_plot_is_a_picture_with_something_on_it(self, rows):
        for chart in self.pictures(self.trials.head(rows)):
            image = np.asarray(Image.open(io.BytesIO(chart.png())).convert("L"))
            assert (image < 200).mean() > 0.005
            assert "<title>" in chart.svg("a chart"), "it says values where one points at them"

    def test_depths_are_in_their_own_order(self):
        names = ["all", "last10", "head", "last2", "other"]
        assert sorted(names, key=plots._depth_order) == ["head", "last2", "last10", "all", "other"]


def epoch(number, top1, loss=1.0):
    measures = {"validation_top1": top1, "validation_loss": loss, "validation_rows": 1000}
    return measures | {"epoch": number, "seconds": 0.5, "train_rows": 10}


class TestRecords:
    @pytest.fixture
    def shared(self, tmp_path):
        config = make_config({"train.head_lr": [0.1, 0.2, 0.3]}, model={"trainable": "head"})
        config = config.model_copy(update={"tune": config.tune.model_copy(update={"keep_top_trials": 1})})
        return SimpleNamespace(
            config=config,
            records=str(tmp_path),
            is_population=False,
            touch=lambda: None,
            trial=config.trial,
            plan=SimpleNamespace(num_workers=1),
        )

    def hear(self, ledger, trial, rows, *, done=True, finished=True, recorded=False):
        """What Tune says of a trial that tells these epochs."""
        others = [SimpleNamespace(trial_id=known) for known in ledger.rows if known != trial.trial_id]
        ledger.on_step_begin(0, [*others, trial])
        for row in rows:
            result = {"rows": [row], "key": f"key-{trial.trial_id}", "finished": finished, "recorded": recorded}
            ledger.on_trial_result(0, [trial], trial, result)
        if done:
            ledger.on_trial_complete(0, [trial], trial)

    def trial(self, name, rate):
        return SimpleNamespace(trial_id=name, config={"train.head_lr": rate})

    def test_what_is_recorded_is_told_again_and_not_run_again(self, shared):
        drawn = {"train.head_lr": 0.1}
        first = Trial(shared, drawn)
        write_record(first.folder, drawn=drawn, finished=False, history=[epoch(1, 0.2), epoch(2, 0.1)])
        again = Trial(shared, drawn)
        steps = [again.step(), again.step()]
        assert [step["score"] for step in steps] == [0.2, 0.2]
        assert [step["done"] for step in steps] == [False, True]
        assert not steps[1]["finished"], "something else had ended it"
        assert again.loop is None

    def test_equal_trials_have_one_record_and_others_their_own(self, shared):
        keys = [Trial(shared, {"train.head_lr": rate}).key for rate in (0.1, 0.1, 0.2)]
        assert keys[0] == keys[1] != keys[2]

    def test_a_trial_that_tells_its_epochs_twice_is_counted_once(self, shared):
        ledger = TrialsTable(shared)
        trial = self.trial("a", 0.1)
        self.hear(ledger, trial, [epoch(1, 0.1), epoch(2, 0.3)], done=False)
        self.hear(ledger, trial, [epoch(1, 0.1), epoch(2, 0.3), epoch(3, 0.2)])
        assert ledger.num_epochs == 3
        [row] = ledger.ranked()
        assert [row["epoch"] for row in row.history] == [1, 2, 3]
        assert ledger.best_epoch(row)["epoch"] == 2
        assert row.status == "finished"

    def test_stopped_trials_get_a_record_and_recorded_ones_keep_theirs(self, shared, tmp_path):
        ledger = TrialsTable(shared)
        self.hear(ledger, self.trial("a", 0.1), [epoch(1, 0.1)], finished=False)
        self.hear(ledger, self.trial("b", 0.2), [epoch(1, 0.2)], finished=False, recorded=True)
        assert [path.parent.name for path in tmp_path.glob("*/record.json")] == ["key-a"]
        assert json.loads((tmp_path / "key-a" / "record.json").read_text())["history"] == [epoch(1, 0.1)]

    def test_only_the_best_weights_stay(self, shared, tmp_path):
        ledger = TrialsTable(shared)
        for name, rate, top1 in (("a", 0.1, 0.5), ("b", 0.2, 0.7), ("c", 0.3, float("nan"))):
            (tmp_path / f"key-{name}").mkdir()
            (tmp_path / f"key-{name}" / "state.pt").write_bytes(b"weights")
            self.hear(ledger, self.trial(name, rate), [epoch(1, top1, loss=1.0 if top1 == top1 else float("nan"))])
        assert [path.parent.name for path in tmp_path.glob("*/state.pt")] == ["key-b"]
        assert [row.trial for row in ledger.ranked()] == [2, 1], "what diverged has no rank"

    def test_a_trial_that_fails_in_the_step_that_drew_it_is_a_row(self, shared):
        """Kind of fault: a process that dies between two trials ends the search."""
        ledger = TrialsTable(shared)
        first, second = self.trial("a", 0.1), self.trial("b", 0.2)
        self.hear(ledger, first, [epoch(1, 0.1)])
        second.get_pickled_error = lambda: RayActorError()
        ledger.on_trial_error(0, [first, second], second)
        assert [(row.trial, row.status) for row in ledger.rows.values()] == [(1, "finished"), (2, "failed")]
        assert ledger.lost == 1

    def test_what_a_budget_ends_was_stopped(self, shared):
        ledger = TrialsTable(shared)
        self.hear(ledger, self.trial("a", 0.1), [epoch(1, 0.1)], done=False, finished=False)
        ledger.end()
        assert [row.status for row in ledger.rows.values()] == ["stopped"]


def test_a_population_stays_in_its_ranges():
    space = {"train.layer_decay": Domain(uniform=(0.5, 1.0)), "train.label_smoothing": Domain(choice=[0.0, 0.1])}
    wandered = {"train.layer_decay": 1.2, "train.label_smoothing": 0.1, "train.head_lr": 5.0}
    assert _within(space, wandered) == {"train.layer_decay": 1.0, "train.label_smoothing": 0.1, "train.head_lr": 5.0}
