"""Folds: every row is tested once, products stay together, classes are in equal shares."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.config import TrainConfig
from retailray.data.catalog import Catalog
from retailray.errors import CatalogError
from retailray.training.folds import make_folds


def catalog_of(labels, groups):
    rows = pa.table({"label": labels, "group": groups, "split": [""] * len(labels)})
    return Catalog("/x/c.csv", rows)


def config_of(folds, **catalog):
    return TrainConfig(out="/x", catalog={"uri": "/x/c.csv", **catalog}, split={"folds": folds})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), folds=st.integers(2, 5))
def test_folds_divide_the_rows(seed, folds):
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 60, 300)
    labels = np.array(["a", "b", "c"])[groups % 3]  # a product has one label
    catalog = catalog_of(labels.tolist(), [f"g{group}" for group in groups])
    roles = {"train": np.arange(250), "validation": np.arange(250, 300)}
    made = make_folds(config_of(folds), catalog, roles)
    assert len(made) == folds
    assert sorted(np.concatenate([fold["test"] for fold in made]).tolist()) == list(range(300))
    for fold in made:
        assert sorted(np.concatenate(list(fold.values())).tolist()) == list(range(300))
        products = [set(groups[members].tolist()) for members in fold.values()]
        assert not products[0] & products[1]
        assert not products[1] & products[2]
        assert not products[0] & products[2]
        share = [(labels[fold["test"]] == label).mean() - (labels == label).mean() for label in "abc"]
        assert np.abs(share).max() < 0.15


def test_validation_rows_that_the_catalog_names_choose_in_every_fold():
    labels, groups = ["a", "b"] * 30, [f"g{row}" for row in range(60)]
    roles = {"train": np.arange(50), "validation": np.arange(50, 60)}
    made = make_folds(config_of(2, validation_uri="/x/v.csv"), catalog_of(labels, groups), roles)
    assert all(fold["validation"].tolist() == list(range(50, 60)) for fold in made)
    assert sorted(np.concatenate([fold["test"] for fold in made]).tolist()) == list(range(50))


def test_more_folds_than_products_is_an_error_that_says_so():
    with pytest.raises(CatalogError, match=r"split.folds = 5"):
        make_folds(
            config_of(5),
            catalog_of(["a", "b"] * 5, ["g1", "g2"] * 5),
            {"train": np.arange(8), "validation": np.arange(8, 10)},
        )
