"""Compiled forward passes: the same answers, where they save time; without a compiler all goes on as it is."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from retailray.execution.reporting import Counter
from retailray.models.bundle import load_bundle
from retailray.models.compiling import Measured, compile_if_it_pays
from retailray.models.predicting import PredictorSettings, _agreed
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

    def refuse(rows):
        raise RuntimeError("no compiler\nand a stack of many lines")

    monkeypatch.setattr(predictor, "compile", refuse)
    expected = predictor(images(3))
    decision = compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8)
    assert decision == (False, "it cannot be compiled here: no compiler")
    assert (predictor(images(3)) == expected).all()
    [kept] = (tmp_path / "cache").rglob("compiled/*")
    assert json.loads(kept.read_text())["failed"] == decision.why
    monkeypatch.setattr(predictor, "compile", lambda rows: pytest.fail("it is known here"))
    assert compile_if_it_pays(predictor, "auto", num_images=10**9, batch_size=8) == decision


def test_a_night_that_should_be_compiled_like_the_one_before_says_that_it_is_not(tmp_path, monkeypatch):
    def refuse(self, rows):
        raise RuntimeError("no compiler")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Predictor, "compile", refuse)
    bundle = load_bundle(save_untrained(tmp_path, "cnn2")[0])
    settings = PredictorSettings("", False, 1, 1, agreed="float32 compiled", compile="auto", batch_size=8)
    counter = Counter()
    predictor = _agreed(settings, lambda precision: Predictor(bundle, precision=precision), counter)
    assert (predictor.precision, predictor.compiled) == ("float32", None)
    [(name, fields)] = counter.take()[2]
    assert (name, "without a compiled forward pass: it cannot" in fields["note"]) == ("warning", True)
    off, silent = dataclasses.replace(settings, compile="off"), Counter()
    assert _agreed(off, lambda precision: Predictor(bundle, precision=precision), silent).compiled is None
    assert silent.take()[2] == [], "which was asked for"


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
