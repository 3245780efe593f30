"""Measures of numbers, by scikit-learn and by sums that pandas makes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from retailray.models.number_metrics import number_metrics


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    value = rng.gamma(2, 3, 400).round(2)
    predicted = value + rng.normal(0.3, 1.5, 400)
    half = rng.uniform(0, 3, 400)
    group = [f"p{one}" for one in rng.integers(0, 60, 400)]
    columns = {"value": value, "pred_value": predicted, "pred_low": predicted - half, "pred_high": predicted + half}
    return pd.DataFrame(columns | {"group": group})


def test_measures_are_those_of_scikit_learn(rows):
    found = number_metrics(rows, bootstrap=200)
    assert found["mae"] == pytest.approx(mean_absolute_error(rows.value, rows.pred_value))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(rows.value, rows.pred_value))
    assert found["r2"] == pytest.approx(r2_score(rows.value, rows.pred_value))
    off = (rows.value - rows.pred_value).abs()
    assert found["wape"] == pytest.approx(off.sum() / rows.value.sum())
    assert found["bias"] == pytest.approx(rows.pred_value.mean() - rows.value.mean())
    assert found["median_mae"] == pytest.approx((rows.value - rows.value.median()).abs().mean())
    assert found["coverage"] == pytest.approx(rows.value.between(rows.pred_low, rows.pred_high).mean())
    assert found["mean_width"] == pytest.approx((rows.pred_high - rows.pred_low).mean())
    for name in ("mae", "wape"):
        low, high = found["intervals"][name]
        assert low < found[name] < high


def test_intervals_draw_whole_products(rows):
    """Kind of fault: fifty photos of one product counted as fifty of them."""
    alone = number_metrics(rows, bootstrap=400)["intervals"]["mae"]
    copied = number_metrics(pd.concat([rows] * 9), bootstrap=400)["intervals"]["mae"]
    assert np.diff(copied) == pytest.approx(np.diff(alone), rel=0.25)


def test_fifths_by_value_hold_every_row_once(rows):
    found = pd.DataFrame(number_metrics(rows, bootstrap=0)["by_value"])
    assert found.rows.sum() == len(rows)
    for one in found.itertuples():
        mine = rows[rows.value.between(one.low, one.high)]
        assert len(mine) == one.rows
        assert one.mae == pytest.approx((mine.value - mine.pred_value).abs().mean())
        assert one.coverage == pytest.approx(mine.value.between(mine.pred_low, mine.pred_high).mean())
    assert len(found) == 5
    tied = rows.assign(value=np.where(rows.index < 350, 1.0, rows.value))
    assert sum(one["rows"] for one in number_metrics(tied, bootstrap=0)["by_value"]) == len(rows)


@pytest.mark.parametrize(("value", "r2", "wape"), [(0.0, None, None), (3.0, None, 0.5), (2.49, None, 0.6024)])
def test_what_cannot_be_said_is_not_said(value, r2, wape):
    rows = pd.DataFrame({"value": [value] * 4, "pred_value": [value + 1.5] * 4, "group": list("abcd")})
    found = number_metrics(rows.assign(pred_low=value, pred_high=value), bootstrap=50)
    assert (found["r2"], found["wape"]) == (r2, wape if wape is None else pytest.approx(wape, abs=1e-4))
    assert found["coverage"] == 1
    assert number_metrics(rows.assign(pred_low=0, pred_high=0), bootstrap=0)["intervals"] == {}
