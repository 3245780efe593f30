"""Compiled forward passes: the same answers, where they save time; without a compiler all goes on as it is."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from retailray.execution.reporting import Counter
from retailray.models.agreement import Agreement, agreed_predictor, known_agreement
from retailray.models.bundle import load_bundle
from retailray.models.compiling import Decision, Measured, compile_if_it_pays
from retailray.models.predicting import PredictorSettings
from retailray.models.predictor import Predictor
from tests.conftest import save_untrained

pytestmark = pytest.mark.slow  # inductor, and the C++ compiler


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Predictor(load_bundle(save_untrained(tmp_path, "cnn2")[0]), precision="float32")


def images(count):
    return np.random.default_rng(count).integers(0, 255, (count, 3, 32, 32), np.uint8)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: apt-get install g++")
def test_compiled_is_eager_for_batches_of_every_size(predictor):
    """Oracle: the same network as torch runs it, on full batches, on fewer rows, which are filled up, and on more."""
    predictor.rows_at_once = 8
    expected = {count: predictor.outputs(images(count)) for count in (8, 3, 1, 11)}
    decision = compile_if_it_pays(predictor, "on", num_images=10, batch_size=8)
    assert decision == (True, "score.compile is on")
    compiled, seen = predictor.compiled, []
    predictor.compiled = lambda batch: seen.append(len(batch)) or compiled(batch)
    for count, (logits, embeddings) in expected.items():
        found = predictor.outputs(images(count))
        assert found[0].shape == logits.shape
        np.testing.assert_allclose(found[0], logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[1], embeddings, rtol=1e-3, atol=1e-3)
    assert seen == [8] * 5, "all of one shape, or torch would compile again"


def test_a_few_images_are_not_worth_it_and_nothing_is_compiled(predictor):
    decision = compile_if_it_pays(predictor, "auto", num_images=100, batch_size=8)
    assert not decision.compiled
    assert decision.why.startswith("too few to try it: all 100 images take 0 s")
    assert compile_if_it_pays(predictor, "off", num_images=10**9, batch_size=8) == (False, "score.compile is off")
    assert predictor.compiled is None


def test_what_failed_once_is_not_tried_again(predictor, tmp_path, monkeypatch):
    """What fails where there is no compiler: :mod:`tests.commands.test_compiled_scoring`."""

    def refuse_here(rows):
        raise RuntimeError("no compiler\nand a stack of many lines")

    monkeypatch.setattr(predictor, "compile", refuse_here)
    expected = predictor(images(3))
    decision = compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8)
    assert decision == (False, "it cannot be compiled here: no compiler")
    assert (predictor(images(3)) == expected).all()
    [kept] = (tmp_path / "cache").rglob("compiled/*")
    assert json.loads(kept.read_text())["failed"] == decision.why
    monkeypatch.setattr(predictor, "compile", lambda rows: pytest.fail("it is known here"))
    assert compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8) == decision


def bundle_and_settings(tmp_path, monkeypatch, **fields):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = load_bundle(save_untrained(tmp_path, "cnn2")[0])
    settings = PredictorSettings("", False, 1, 1, precision="float32", compile="auto", batch_size=8)
    settings = dataclasses.replace(settings, agreement=Agreement(f"{tmp_path}/run"))
    return (lambda precision: Predictor(bundle, precision=precision)), dataclasses.replace(settings, **fields)


def refuse(self, rows):
    raise RuntimeError("no compiler")


@dataclasses.dataclass
class Compiled:
    """In place of a second of inductor: the pass as it is, through what a compiled one goes through."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, predictor, rows):
        self.calls.append(rows)
        predictor.compiled, predictor.compiled_rows = predictor.eager, rows


def test_a_night_that_should_be_compiled_like_the_one_before_says_that_it_is_not(tmp_path, monkeypatch):
    make, settings = bundle_and_settings(tmp_path, monkeypatch)
    settings.agreement.propose("precision.txt", "float32")
    settings.agreement.propose("forward_pass.txt", "compiled")
    monkeypatch.setattr(Predictor, "compile", refuse)
    counter = Counter()
    predictor = agreed_predictor(settings, make, counter)
    assert (predictor.precision, predictor.compiled) == ("float32", None)
    [(name, fields)] = counter.take()[2]
    assert (name, "without a compiled forward pass: it cannot" in fields["note"]) == ("warning", True)
    assert known_agreement(f"{tmp_path}/run").known["forward_pass.txt"] == "not compiled in every process"
    silent = Counter()
    assert agreed_predictor(dataclasses.replace(settings, compile="off"), make, silent).compiled is None
    assert silent.take()[2] == [], "which was asked for"
    assert known_agreement(f"{tmp_path}/run").known["forward_pass.txt"] == "not compiled in every process"


@pytest.mark.parametrize("first", ["not compiled", "compiled"])
def test_who_was_first_does_not_matter_where_one_machine_has_no_compiler(tmp_path, monkeypatch, first):
    """Kind of fault: the last one to write says what all have done."""
    compiled = Compiled()
    make, settings = bundle_and_settings(tmp_path, monkeypatch, compile="on")
    settings.agreement.propose("forward_pass.txt", first)
    other = refuse if first == "compiled" else lambda *arguments: compiled(*arguments)
    monkeypatch.setattr(Predictor, "compile", other)
    agreed_predictor(settings, make, Counter())
    assert known_agreement(f"{tmp_path}/run").known["forward_pass.txt"] == "not compiled in every process"


def test_the_number_format_is_read_where_it_stood_with_the_pass(tmp_path):
    (tmp_path / "precision.txt").write_text("bfloat16 compiled")
    (tmp_path / "forward_pass.txt").write_text("not compiled")
    assert list(known_agreement(str(tmp_path)).known.values()) == ["bfloat16", "not compiled"]


def test_predictors_of_commands_that_agree_on_nothing_say_nothing(tmp_path, monkeypatch):
    """Kind of fault: ``evaluate`` emits an event about ``score.compile``, which it does not read."""
    make, settings = bundle_and_settings(tmp_path, monkeypatch, compile="off", agreement=Agreement())
    told = Counter()
    assert agreed_predictor(settings, make, told).compiled is None
    assert told.take()[2] == []


def test_what_the_first_predictor_decides_holds_for_all_of_a_run(tmp_path, monkeypatch):
    """Kind of fault: each decides by its own measurements, and rows of one table differ in how they were computed."""
    compiled = Compiled()
    monkeypatch.setattr(Predictor, "compile", lambda *arguments: compiled(*arguments))
    make, many = bundle_and_settings(tmp_path, monkeypatch, num_images=10**9)
    few = dataclasses.replace(many, num_images=1)
    monkeypatch.setattr(Measured, "decide", lambda self, count: Decision(count > 1, "as the test says"))
    told = Counter()
    assert agreed_predictor(few, make, told).compiled is None
    assert [name for name, _ in told.take()[2]] == ["forward_pass"]
    assert agreed_predictor(many, make, told).compiled is None, "the first had too few, and this is its run"
    other = dataclasses.replace(many, agreement=Agreement(f"{tmp_path}/other"))
    assert agreed_predictor(other, make, told).compiled
    assert compiled.calls == [8]
    assert agreed_predictor(dataclasses.replace(other, num_images=1), make, told).compiled
    assert [fields["as"] for _, fields in told.take()[2]] == ["float32, compiled"], "told once a run"
    on_gpu = dataclasses.replace(other, use_gpu=True)
    assert agreed_predictor(on_gpu, make, told).compiled is None
    assert known_agreement(f"{tmp_path}/other").known["forward_pass.txt"] == "not compiled", "what was done"


def test_two_that_decide_at_once_agree(tmp_path, monkeypatch):
    """The second finds that another machine's predictor has written before it."""
    compiled = Compiled()
    monkeypatch.setattr(Predictor, "compile", lambda *arguments: compiled(*arguments))
    make, settings = bundle_and_settings(tmp_path, monkeypatch, num_images=10**9)
    monkeypatch.setattr(Measured, "decide", lambda self, count: Decision(count > 1, "as the test says"))
    ask = Agreement.propose

    def after_another(said):
        def propose(self, name, value):
            ask(self, name, said.get(name, value))
            return ask(self, name, value)

        return propose

    monkeypatch.setattr(Agreement, "propose", after_another({"forward_pass.txt": "not compiled"}))
    assert agreed_predictor(settings, make, Counter()).compiled is None
    few = dataclasses.replace(settings, num_images=1, agreement=Agreement(f"{tmp_path}/other"))
    monkeypatch.setattr(Agreement, "propose", after_another({"forward_pass.txt": "compiled"}))
    assert agreed_predictor(few, make, Counter()).compiled
    for run, value in (("run", "not compiled"), ("other", "compiled")):
        assert known_agreement(f"{tmp_path}/{run}").known["forward_pass.txt"] == value


def test_what_differs_with_these_weights_is_tried_again_with_others(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "compile", lambda rows: setattr(predictor, "temperature", 1e6))
    decision = compile_if_it_pays(predictor, "on", num_images=10, batch_size=8)
    assert decision.why.startswith("compiled, its probabilities differ by 0.")
    assert not list((tmp_path / "cache").rglob("compiled/*"))


def test_a_compiler_installed_later_is_found(predictor, tmp_path, monkeypatch):
    """Kind of fault: what failed is remembered although what it failed for has changed."""
    compiled = Compiled()
    monkeypatch.setattr(Predictor, "compile", refuse)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    assert not compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8).compiled
    (tmp_path / "c++").write_text("#!/bin/sh")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setattr(Predictor, "compile", lambda *arguments: compiled(*arguments))
    compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8)
    assert compiled.calls == [8]


@pytest.mark.parametrize(
    ("num_images", "compiled"), [(1_000, False), (9_000, False), (11_000, True), (10_000_000, True)]
)
def test_it_pays_where_it_saves_more_than_it_costs(num_images, compiled):
    """Ten seconds, and a millisecond saved of every image."""
    measured = Measured(eager_s=0.003, compiled_s=0.002, cost_s=10.0)
    decision = measured.decide(num_images)
    assert decision.compiled == compiled
    assert "333 images/s as it is, 500 compiled" in decision.why
    assert not dataclasses.replace(measured, compiled_s=0.004).decide(num_images).compiled
