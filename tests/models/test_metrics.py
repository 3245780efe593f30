import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import binary_calibration_error

from retailray.models.metrics import calibration_error, classification_metrics, confused_pairs, confusion

LABELS = np.array(["a", "b", "c", "d", "e", "f", "g"], object)


def sample(count=400, seed=0):
    rng = np.random.default_rng(seed)
    truth = LABELS[rng.integers(0, 7, count)]
    predicted = np.where(rng.random(count) < 0.7, truth, LABELS[rng.integers(0, 7, count)])
    top = [[guess, *[label for label in LABELS if label != guess][:4]] for guess in predicted]
    return truth, predicted, rng.uniform(0.3, 1, count), top


def test_measures_by_hand():
    truth = np.array(["a", "a", "b", "c"], object)
    predicted = np.array(["a", "b", "b", "x"], object)
    top = [["a"], ["b", "a"], ["b"], ["x", "1", "2", "3", "4", "c"]]
    measured = classification_metrics(truth, predicted, np.array([0.9, 0.6, 0.8, 0.5]), top, bootstrap=0)
    assert measured["top1"] == 0.5
    assert measured["top5"] == 0.75
    assert measured["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert measured["per_class"]["a"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    # four bins with one row each: |0.9 - 1|, |0.6 - 0|, |0.8 - 1|, |0.5 - 0| over four
    assert measured["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.5) / 4, abs=1e-6)
    assert measured["intervals"] == {}


@pytest.mark.parametrize("score", ["any", "on the edges of bins", "all sure"])
def test_the_calibration_error_is_torchmetrics(score):
    generator = np.random.default_rng(0)
    scores = {
        "any": generator.uniform(0, 1, 1000),
        "on the edges of bins": generator.integers(1, 15, 1000) / 15 + 1e-9,
        "all sure": np.ones(1000),
    }[score]
    correct = (generator.random(1000) < scores**2).astype(float)
    expected = binary_calibration_error(torch.tensor(scores), torch.tensor(correct).int(), n_bins=15, norm="l1")
    assert calibration_error(scores, correct) == pytest.approx(float(expected), abs=1e-6)


def test_intervals_cover_and_the_macro_f1_is_scikit_learns():
    truth, predicted, score, top = sample()
    measured = classification_metrics(truth, predicted, score, top, bootstrap=400)
    assert measured["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    low, high = measured["intervals"]["top1"]
    spread = 1.96 * np.sqrt(measured["top1"] * (1 - measured["top1"]) / len(truth))
    assert low == pytest.approx(measured["top1"] - spread, abs=0.01)
    assert high == pytest.approx(measured["top1"] + spread, abs=0.01)
    assert measured["intervals"]["macro_f1"][0] < measured["macro_f1"] < measured["intervals"]["macro_f1"][1]


def test_intervals_resample_products():
    """Kind of fault: every picture ten times, as pictures of one product, must not narrow an interval."""
    truth, predicted, score, top = (np.asarray(part, object)[:60] for part in sample())
    once = classification_metrics(truth, predicted, score.astype(float), list(top), bootstrap=400)
    copies = [np.repeat(part, 10, axis=0) for part in (truth, predicted, score.astype(float))]
    groups = np.repeat(np.arange(60), 10)
    tens = [row for row in top for _ in range(10)]
    many = classification_metrics(*copies, tens, bootstrap=400, groups=groups)
    for name in ("top1", "top5", "macro_f1"):
        assert many["intervals"][name] == pytest.approx(once["intervals"][name], abs=0.05)


def test_confusion():
    truth, predicted, *_ = sample()
    matrix, labels = confusion(truth, predicted)
    assert matrix.sum() == len(truth)
    pairs = confused_pairs(truth, predicted, limit=3)
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    for true, guess, count in pairs:
        assert true != guess
        assert matrix[labels.index(true), labels.index(guess)] == count


@pytest.mark.slow
def test_many_labels_and_a_long_one_cost_their_own_size():
    """Kind of fault: the square of the labels, or every row as long as the longest label (10 GB here, either way)."""
    code = """
import resource
import numpy as np
import sklearn.metrics
from retailray.evaluation.evaluate import _confusion_csv
from retailray.models.metrics import calibration_error, classification_metrics, confusion
from retailray.evaluation.report import _most_confused
calibration_error(np.array([0.5]), np.array([1.0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
names = np.array([f"label {number:05d}" for number in range(20_000)], dtype=object)
names[777] = "x" * 100_000
truth, predicted = np.tile(names, 2), np.tile(names, 2)
predicted[:7000] = np.roll(predicted[:7000], 1)
top = [[name] for name in predicted]
found = classification_metrics(truth, predicted, np.full(40_000, 0.5), top, bootstrap=20)
assert abs(found["top1"] - 33_000 / 40_000) < 1e-9, found["top1"]
assert len(found["per_class"]) == 20_000
matrix, labels = confusion(truth, predicted)
assert matrix.sum() == 40_000 and len(labels) == 20_000
part, chosen = _most_confused(matrix, labels)
assert part.shape == (100, 100) and len(chosen) == 100
lines = _confusion_csv(matrix, labels).splitlines()
assert lines[0] == "truth,predicted,rows" and len(lines) == 1 + matrix.nnz
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400, "megabytes"
