"""How many fits are at work at once, and with how many CPUs."""

import threading
from types import SimpleNamespace

import pytest

from retailray.config import StudyConfig
from retailray.studies import fits


class TwoAtOnce:
    """An executor whose calls, but for the first one, return when two of them are under way."""

    engine = "ray"

    def __init__(self, num_cpus, num_gpus=0, num_nodes=1):
        self.capacity = SimpleNamespace(num_cpus=float(num_cpus), num_gpus=float(num_gpus))
        self.num_nodes, self.calls, self.both = num_nodes, [], threading.Barrier(2, timeout=20)

    def call(self, function, settings, environment, *, cpus, gpus):
        assert environment == {fits.CPUS: f"{cpus:.0f}"}
        self.calls.append((settings.train.seed, cpus, gpus))
        if settings.train.seed:
            self.both.wait()


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(fits, "read_fit", lambda model, seed, out: SimpleNamespace(model=model, seed=seed))
    return SimpleNamespace(resumed=False, path=lambda *parts: str(tmp_path.joinpath(*parts)))


def study(**section):
    models = [{"name": "cnn1", "model": {"arch": "cnn1"}}]
    return StudyConfig(out="/o", catalog={"uri": "/c.csv"}, study={"models": models, "seeds": 5} | section)


@pytest.mark.parametrize(
    ("machines", "section", "first", "others"),
    [
        (TwoAtOnce(4), {"max_concurrent": 2}, (4, 0), (2, 0)),
        (TwoAtOnce(2), {}, (2, 0), (1, 0)),
        # of two machines with eight CPUs each, a fit can have those of one
        (TwoAtOnce(16, num_nodes=2), {"max_concurrent": 2}, (8, 0), (8, 0)),
        (TwoAtOnce(16, num_gpus=2), {}, (16, 1), (8, 1)),
    ],
)
def test_the_first_fit_is_alone_and_the_others_are_side_by_side(run, machines, section, first, others):
    config = study(**section)
    wanted = [(config.study.models[0], number) for number in range(5)]
    tasks = [fits._task(config, run, *one, {"cnn1": "float32"}) for one in wanted]
    found = fits._side_by_side(run, machines, fits.share_of(config, machines), tasks)
    assert [one.seed for one in found] == [0, 1, 2, 3, 4]
    assert machines.calls[0] == (0, *first)
    assert sorted(machines.calls[1:]) == [(seed, *others) for seed in (1, 2, 3, 4)]


def test_what_ends_a_worker_names_the_model_and_the_seed(run):
    machines = TwoAtOnce(2)
    machines.call = lambda *_, **__: (_ for _ in ()).throw(MemoryError("no memory"))
    machines.root_cause = str
    with pytest.raises(fits.RetailrayError, match=r"study\.models: cnn1, seed 0: no memory"):
        list(fits.run_fits(study(), run, machines, {"cnn1": "float32"}))


def test_a_fit_that_diverges_is_told_of_and_not_repeated(run):
    """Kind of fault: one rate that is too high ends hours of other fits."""
    machines = TwoAtOnce(1)
    machines.call = lambda _, settings, *__, **___: "no finite loss" if settings.train.seed in (1, 3) else ""
    found = list(fits.run_fits(study(), run, machines, {"cnn1": "float32"}))
    assert [one.seed for one in found] == [0, 1, 2, 3, 4]
    assert [one.seed for one in found if isinstance(one, fits.DivergedFit)] == [1, 3]
    assert [one.message for one in found if isinstance(one, fits.DivergedFit)] == ["no finite loss"] * 2
    run.resumed = True
    machines.call = lambda _, settings, *__, **___: trained.append(settings.train.seed)
    trained = []
    again = list(fits.run_fits(study(), run, machines, {"cnn1": "float32"}))
    assert [type(one) for one in again] == [type(one) for one in found]
    assert trained == [0, 2, 4], "which have no LATEST here"
