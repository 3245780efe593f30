"""The same commands in this process and on Ray leave the same tables; and which back end a command gets."""

import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import joblib
import pandas as pd
import pyarrow as pa
import pytest

from retailray.config import ClusterSection
from retailray.errors import CapacityError, StorageError
from retailray.execution import Plan, start_executor
from retailray.execution.choice import why_many
from retailray.execution.inline_backend import inline_executor
from tests.commands.helpers import events, latest, read_json
from tests.conftest import save_untrained

PLAN = Plan(1, 1.0, 0.0, 1.0, 1)
STAMP = ("run_id", "scored_at")


def numbers(*sizes):
    tables, at = [], 0
    for size in sizes:
        tables.append(pa.table({"n": pa.array(range(at, at + size), pa.int64())}))
        at += size
    return tables


def values(stream):
    return [number for table in stream.tables() for number in table.column("n").to_pylist()]


def twice(table, *, plus=0):
    return pa.table({"n": pa.compute.add(pa.compute.multiply(table.column("n"), 2), plus)})


def in_pieces(table):
    for at in range(table.num_rows):
        yield table.slice(at, 1)


def power(base, *, to):
    return base**to


class Counts:
    def __init__(self):
        self.total = 0

    def add(self, more):
        self.total += more
        return self.total


class AddsWhatItHasSeen:
    def __init__(self, *, start):
        self.seen = start

    def __call__(self, table):
        self.seen += table.num_rows
        return pa.table({"n": table.column("n"), "seen": [self.seen] * table.num_rows})


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_streams(engine, request):
    if engine == "ray":
        request.getfixturevalue("ray_session_cpus")
    with start_executor(ClusterSection(engine=engine), num_images=1) as executor, executor.in_order():
        assert executor.engine == engine
        stream = executor.stream(numbers(3, 0, 5, 1), PLAN)
        assert values(stream) == list(range(9))
        assert values(stream.map(twice, {"plus": 1}, rows=2)) == [2 * n + 1 for n in range(9)]
        assert values(stream.map(in_pieces, {}).map(twice, {})) == [2 * n for n in range(9)]
        together = executor.union([stream, stream.map(twice, {})])
        assert sorted(values(together)) == sorted([*range(9), *range(0, 18, 2)])
        found = pa.concat_tables(stream.map_with(AddsWhatItHasSeen, {"start": 10}, rows=4).tables())
        assert found.column("n").to_pylist() == list(range(9))
        seen = Counter(found.column("seen").to_pylist())  # one actor saw all, in batches that may overtake each other
        assert max(seen.values()) <= 4
        assert [before + seen[now] for before, now in itertools.pairwise([10, *sorted(seen)])] == sorted(seen)
        assert max(seen) == 19
        assert values(stream.map(twice, {}).kept().select(["n"])) == [2 * n for n in range(9)]
        assert executor.put({"a": 1}).get() == {"a": 1}
        assert executor.call(power, 3, to=4, cpus=0.5, gpus=0) == 81
        counter = executor.shared(Counts)
        assert [counter.add(2), counter.add(3)] == [2, 5]
        with executor.reporter("images", 3) as reporter:
            reporter.step(2, "half")
            reporter.spend({"fetch": 1.5})
            reporter.spend({"fetch": 1.0, "decode": 2.0})
            assert reporter.spent() == {"fetch": 2.5, "decode": 2.0}


def test_a_shard_is_drawn_anew_with_every_seed_and_no_row_is_lost():
    with inline_executor() as executor:
        stream = executor.stream(numbers(*[7] * 20), PLAN)
        drawn = [[n for table in stream.batches(16, shuffle_rows=30, seed=seed) for n in table.column("n").to_pylist()]
                 for seed in (1, 1, 2)]  # fmt: skip
        sizes = [table.num_rows for table in stream.batches(16, shuffle_rows=30, seed=1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(drawn[2]) == list(range(140)) != drawn[0]
    assert sizes == [16] * 8 + [12]


def test_functions_run_ahead_of_their_reader_but_not_far():
    """Kind of fault: all images of a catalog are in memory before the first one is predicted."""
    begun = []

    def note(table):
        begun.append(table.column("n")[0].as_py())
        return table

    with inline_executor() as executor:
        stream = executor.stream(numbers(*[1] * 100), PLAN).map(note, {})
        tables = stream.tables()
        next(tables)
        time.sleep(0.2)
        assert 1 < len(begun) <= 1 + 2 * executor.threads
        assert len(list(tables)) == 99
    assert begun == sorted(begun) or len(begun) == 100


def test_what_a_function_raises_ends_the_stream_and_leaves_no_thread():
    def fails(table):
        raise ValueError(f"not {table.column('n')[0]}")

    with pytest.raises(ValueError, match="not 0"), inline_executor() as executor:
        values(executor.stream(numbers(1, 1, 1), PLAN).map(fails, {}))
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("retailray")]
    assert not ours


@pytest.mark.parametrize(
    ("settings", "num_images", "engine"),
    [
        ({}, 10, "inline"),
        ({}, 20_000, "ray"),
        ({"engine": "inline"}, 20_000, "inline"),
        ({"num_workers": 1}, 10, "inline"),
        ({"num_workers": 2}, 10, "ray"),
        ({"request_cpus": 2}, 10, "ray"),
        ({"engine": "ray"}, 10, "ray"),
        ({"address": "10.0.0.1:6379"}, 10, "ray"),
        ({"address": "local"}, 10, "inline"),
    ],
)
def test_which_back_end_a_command_gets(settings, num_images, engine, monkeypatch, capsys):
    """The one that needs no Ray wherever it can do the work; an event says why not."""

    def ray(section):
        raise LookupError("ray")

    monkeypatch.setattr("retailray.execution.ray_backend.ray_executor", ray)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    try:
        with start_executor(ClusterSection(**settings), num_images=num_images) as executor:
            found = executor.engine
    except LookupError:
        found = "ray"
    assert found == engine
    [said] = events(capsys.readouterr().out)
    assert (said["event"], said["engine"]) == ("engine", engine)
    assert said["why"]


@pytest.mark.parametrize("settings", [{"num_workers": 2}, {"request_gpus": 1}, {"address": "10.0.0.1:6379"}])
def test_inline_refuses_what_it_cannot_do(settings):
    section = ClusterSection(engine="inline", **settings)
    with pytest.raises(CapacityError, match=r"cluster.engine = inline, and .* remove one"):
        start_executor(section, num_images=1).__enter__()


def fails_first(table, *, folder, message):
    """Fails in its first two tries, which it counts in a folder, as a store does that comes back."""
    tries = len(list(Path(folder).iterdir()))
    if tries < 2:
        Path(folder, str(tries)).touch()
        raise StorageError(message)
    return table


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session_cpus")
def test_on_ray_a_task_that_a_store_did_not_answer_is_tried_again_and_what_lasts_is_not(tmp_path):
    from retailray.execution.ray_backend import ray_executor

    for message, tries in (("s3://b/k: no answer from http://s3 (ReadTimeout)", 2), ("s3://b/k: access denied", 1)):
        folder = tmp_path / str(tries)
        folder.mkdir()
        with ray_executor(ClusterSection()) as executor:
            stream = executor.stream(numbers(3), PLAN).map(fails_first, {"folder": str(folder), "message": message})
            if tries == 2:
                assert values(stream) == [0, 1, 2]
            else:
                with pytest.raises(Exception, match="access denied"):
                    values(stream)
        assert len(list(folder.iterdir())) == tries


@pytest.mark.ray
@pytest.mark.slow
def test_both_back_ends_leave_the_same_tables(retailray, ray_session_cpus, small_catalog, tmp_path):
    """``check``, ``score`` and ``evaluate``, with a model of torchvision; training: commands/test_fine_tuning.py."""
    found, (bundle, _) = {}, save_untrained(tmp_path, "resnet18")
    for engine in ("inline", "ray"):
        out = tmp_path / engine
        common = {"catalog.uri": small_catalog[0] / "catalog.csv", "catalog.max_pixels": 20_000_000}
        common |= {"cluster.engine": engine}
        model = {"model.uri": bundle}
        assert retailray("check", **common, out=out / "check")[0] == 0
        assert retailray("score", **common, **model, **{"score.max_error_rate": 1, "out": out / "score"})[0] == 0
        assert retailray("evaluate", **common, **model, out=out / "evaluate")[0] == 0
        runs = {name: latest(str(out / name)) for name in ("check", "score", "evaluate")}
        found[engine] = {
            "images": pd.read_parquet(f"{runs['check']}/images.parquet"),
            "metrics": read_json(f"{runs['evaluate']}/metrics.json"),
            **{
                table: duckdb.sql(f"from '{runs['score']}/{table}/*.parquet' order by all").df().drop(columns=[*STAMP],
                                                                                                     errors="ignore")
                for table in ("predictions", "errors", "ledger")
            },
        }  # fmt: skip
    for table in ("images", "predictions", "errors", "ledger"):
        pd.testing.assert_frame_equal(found["inline"][table], found["ray"][table], rtol=1e-4)
    for name in ("per_class", "intervals", "errors_by_code", "num_rows"):
        assert found["inline"]["metrics"][name] == found["ray"]["metrics"][name]
    for name in ("top1", "top5", "ece"):
        assert found["inline"]["metrics"][name] == pytest.approx(found["ray"]["metrics"][name], abs=1e-4)


@pytest.mark.parametrize(
    ("num_images", "cpus", "words"),
    [(500, 16, None), (10_000, 16, None), (10_001, 16, "there are 10001 images, and 16 CPUs"), (10**7, 2, None)],
)
def test_many_images_are_worth_a_ray_where_there_are_cpus_for_it(num_images, cpus, words, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cpus)
    assert why_many(num_images) == words
