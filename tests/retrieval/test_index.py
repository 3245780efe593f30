"""Neighbours by faiss against all cosines, worked out by numpy."""

import numpy as np
import pytest

from retailray.retrieval.index import Filters, build_index, search

N, D = 500, 16


@pytest.fixture(scope="module")
def vectors():
    rows = np.random.default_rng(0).normal(size=(N, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def by_hand(vectors, row, k, allowed=None):
    cosines = vectors.astype(np.float32) @ vectors[row].astype(np.float32)
    cosines[row] = -np.inf
    if allowed is not None:
        cosines[~allowed] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:k]
    order = order[np.isfinite(cosines[order])]
    return order, cosines[order]


def test_the_nearest_are_those_of_all_cosines(vectors):
    rows = np.arange(N)
    found, scores = search(build_index(vectors, "exact").index, vectors, rows, Filters(), 7)
    for row in rows:
        order, cosines = by_hand(vectors, row, 7)
        np.testing.assert_allclose(scores[row], cosines, atol=1e-3)
        assert set(found[row]) == set(order) or np.ptp(cosines[-2:]) < 2e-3
    assert (found != rows[:, None]).all(), "nothing is a neighbour of its own"


@pytest.mark.parametrize("kinds", [("same",), ("different",), ("allowed",), ("same", "different", "allowed")])
def test_filters_leave_out_what_they_say_and_nothing_else(vectors, kinds):
    generator = np.random.default_rng(1)
    columns = {"same": generator.integers(0, 5, N).astype(np.int32), "different": generator.integers(0, 3, N)}
    columns |= {"allowed": generator.random(N) < 0.3}
    columns["different"] = columns["different"].astype(np.int32)
    filters = Filters(**{kind: columns[kind] for kind in kinds})
    rows = filters.order(generator.permutation(N)[:200])
    found, scores = search(build_index(vectors, "exact").index, vectors[rows], rows, filters, 20)
    for at, row in enumerate(rows):
        mask = columns["allowed"].copy() if "allowed" in kinds else np.ones(N, bool)
        if "same" in kinds:
            mask &= columns["same"] == columns["same"][row]
        if "different" in kinds:
            mask &= columns["different"] != columns["different"][row]
        order, cosines = by_hand(vectors, row, 20, mask)
        kept = found[at][found[at] >= 0]
        assert len(kept) == len(order), "fewer than asked only where there are no more"
        assert mask[kept].all()
        np.testing.assert_allclose(scores[at][: len(kept)], cosines, atol=1e-3)


def test_fewer_rows_than_neighbours(vectors):
    found, scores = search(build_index(vectors[:3], "auto").index, vectors[:3], np.arange(3), Filters(), 5)
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[1, 2], [0, 2], [0, 1]]
    assert np.isnan(scores[found < 0]).all()


def test_an_inverted_file_finds_nearly_all():
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(40, 32))[generator.integers(0, 40, 20_000)] + 0.6 * generator.normal(
        size=(20_000, 32)
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    built = build_index(rows, "ivf")
    assert built.kind == "ivf"
    assert built.recall >= 0.99
    assert built.index.nprobe < built.index.nlist, "it does not look everywhere"
    some = generator.choice(20_000, 200, replace=False)
    found, _ = search(built.index, rows[some], some, Filters(), 10)
    truth = [by_hand(rows, row, 10)[0] for row in some]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]) >= 0.98
