"""Two classifiers on the same rows, without Ray: counts, intervals, and catalogs without labels."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from retailray.config import PromoteConfig
from retailray.evaluation.compare import measure, paired
from retailray.evaluation.promote import gate_problems


def frame(labels):
    champion, challenger = ["a", "a", "b", "b"], ["a", "b", "b", "c"]
    products = ["p1", "p2", "p3", "p4"]
    return pd.DataFrame(
        {"label": labels, "group": products, "champion_label": champion, "challenger_label": challenger}
    )


def test_without_labels_it_says_what_would_change_and_not_who_is_right():
    found = measure(frame([""] * 4), bootstrap=100)
    assert (found["changed"], found["labelled"], "top1" in found) == (2, 0, False)
    assert {(row["from"], row["to"]): row["rows"] for row in found["changes"]} == {("a", "b"): 1, ("b", "c"): 1}


def test_rows_without_a_label_count_for_changes_only():
    found = measure(frame(["a", "b", "", "b"]), bootstrap=100)
    assert found["labelled"] == 3
    assert (found["top1"]["challenger"], found["top1"]["champion"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert {row["label"]: row["difference"] for row in found["per_class"]} == {"a": 0.0, "b": 0.0}


def test_rows_that_only_one_of_them_gets_right_are_counted_for_that_one():
    both = frame(["a", "b", "b", "b"])  # the champion: rows 1, 3 and 4; the challenger: 1, 2 and 3
    both.loc[4] = ["b", "p5", "b", "a"]  # and another one that only the champion has right
    top1 = measure(both, bootstrap=10)["top1"]
    assert (top1["only_challenger"], top1["only_champion"]) == (1, 2)


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Challengers that are truly 5 points better, 300 rows, again and again."""
    generator, held = np.random.default_rng(0), 0
    for number in range(400):
        draws = generator.random(300)
        found = paired(draws < 0.85, draws < 0.80, np.arange(300), bootstrap=400, seed=number)
        low, high = found["interval"]
        held += low <= 0.05 <= high
    assert 0.90 < held / 400 < 0.99


def test_images_of_a_product_are_no_rows_of_their_own():
    """Kind of fault: five images of a product, all right or all wrong, count as five, and the interval is too narrow
    and the p-value too small."""
    generator, held, sure = np.random.default_rng(0), 0, 0
    products = np.repeat(np.arange(60), 5)
    for number in range(200):
        draws = generator.random(60)[products]
        found = paired(draws < 0.85, draws < 0.80, products, bootstrap=300, seed=number)
        low, high = found["interval"]
        held += low <= 0.05 <= high
        alike = generator.random((2, 60))[:, products] < 0.8  # as good as each other
        sure += paired(alike[0], alike[1], products, bootstrap=1, seed=number)["p_value"] < 0.05
    assert held / 200 > 0.88
    assert sure / 200 < 0.09
    as_rows = [paired(alike[0], alike[1], rows, bootstrap=300, seed=0) for rows in (np.arange(300), products)]
    widths = [np.diff(found["interval"])[0] for found in as_rows]
    assert 1.7 < widths[1] / widths[0] < 2.8, "the square root of five"


def test_with_a_row_a_product_it_is_mcnemars_exact_test():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 200)) < np.array([[0.8], [0.7]])
    only_first, only_second = (first & ~second).sum(), (second & ~first).sum()
    found = paired(first, second, np.arange(200), bootstrap=10, seed=0)
    expected = scipy.stats.binomtest(int(only_first), int(only_first + only_second), 0.5).pvalue
    assert found["p_value"] == pytest.approx(expected)


def test_equal_classifiers_have_no_evidence_against_each_other():
    right = np.array([True, False, True])
    found = paired(right, right, np.arange(3), bootstrap=100, seed=0)
    assert (found["difference"], found["interval"], found["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_the_gate_asks_for_rows_and_for_a_floor():
    found = measure(frame(["a", "b", "", "b"]), bootstrap=100)
    settings = {"catalog": {"uri": "/x.csv"}, "model": {"uri": "/m"}, "out": "/o"}
    strict = PromoteConfig(**settings, promote={"min_rows": 1000, "min_top1": 0.9, "max_loss": 0.01})
    words = " ".join(gate_problems(strict, found))
    assert "promote.min_rows asks for 1000" in words
    assert "promote.min_top1 = 0.9" in words
    assert "promote.max_loss allows -0.01" in words, "one row of three each way is no evidence"
    kind = PromoteConfig(**settings, promote={"min_rows": 3, "max_loss": 0.99})
    copies = [frame(["a", "b", "", "b"]).assign(group=[f"{number}-{row}" for row in range(4)]) for number in range(10)]
    assert gate_problems(kind, measure(pd.concat(copies), bootstrap=100)) == []
    unlabelled = measure(frame([""] * 4), bootstrap=100)
    assert len(gate_problems(kind, unlabelled)) == 1
