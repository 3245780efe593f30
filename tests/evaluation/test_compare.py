"""Two classifiers on the same rows, without Ray: counts, intervals, and catalogs without labels."""

import numpy as np
import pandas as pd
import pytest

from retailray.config import PromoteConfig
from retailray.evaluation.compare import measure, paired
from retailray.evaluation.promote import gate_problems


def frame(labels):
    champion, challenger = ["a", "a", "b", "b"], ["a", "b", "b", "c"]
    return pd.DataFrame({"label": labels, "champion_label": champion, "challenger_label": challenger})


def test_without_labels_it_says_what_would_change_and_not_who_is_right():
    found = measure(frame([""] * 4), bootstrap=100)
    assert (found["changed"], found["labelled"], "top1" in found) == (2, 0, False)
    assert {(row["from"], row["to"]): row["rows"] for row in found["changes"]} == {("a", "b"): 1, ("b", "c"): 1}


def test_rows_without_a_label_count_for_changes_only():
    found = measure(frame(["a", "b", "", "b"]), bootstrap=100)
    assert found["labelled"] == 3
    assert (found["top1"]["challenger"], found["top1"]["champion"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert {row["label"]: row["difference"] for row in found["per_class"]} == {"a": 0.0, "b": 0.0}


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Challengers that are truly 5 points better, 300 rows, again and again."""
    generator, held = np.random.default_rng(0), 0
    for number in range(400):
        draws = generator.random(300)
        found = paired(draws < 0.85, draws < 0.80, bootstrap=400, seed=number)
        low, high = found["interval"]
        held += low <= 0.05 <= high
    assert 0.90 < held / 400 < 0.99


def test_equal_classifiers_have_no_evidence_against_each_other():
    right = np.array([True, False, True])
    found = paired(right, right, bootstrap=100, seed=0)
    assert (found["difference"], found["interval"], found["mcnemar_p"]) == (0.0, [0.0, 0.0], 1.0)


def test_the_gate_asks_for_rows_and_for_a_floor():
    found = measure(frame(["a", "b", "", "b"]), bootstrap=100)
    settings = {"catalog": {"uri": "/x.csv"}, "model": {"uri": "/m"}, "out": "/o"}
    strict = PromoteConfig(**settings, promote={"min_rows": 1000, "min_top1": 0.9, "max_loss": 0.01})
    words = " ".join(gate_problems(strict, found))
    assert "promote.min_rows asks for 1000" in words
    assert "promote.min_top1 = 0.9" in words
    assert "promote.max_loss allows -0.01" in words, "one row of three each way is no evidence"
    kind = PromoteConfig(**settings, promote={"min_rows": 3, "max_loss": 0.99})
    assert gate_problems(kind, found) == []
    unlabelled = measure(frame([""] * 4), bootstrap=100)
    assert len(gate_problems(kind, unlabelled)) == 1
