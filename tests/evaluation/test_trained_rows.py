"""Rows that a model was trained on are known by their addresses."""

import hashlib

import numpy as np
import pytest

from retailray.config import CatalogSection
from retailray.data.catalog import read_catalog
from retailray.evaluation.trained_rows import Side, trained_rows, warn_of_trained_rows


@pytest.fixture
def catalog(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "c.csv").write_text("image,label\na.jpg,x\nb.jpg,x\nc.jpg,y\n")
    return read_catalog(CatalogSection(uri=str(tmp_path / "c.csv")))


def side(*addresses):
    """Of a bundle whose training rows had these addresses: the first 64 bits of the SHA-256 of each."""
    digests = [int(hashlib.sha256(address.encode()).hexdigest()[:16], 16) for address in addresses]
    return Side("models/x/1", None, np.array(digests, np.uint64))


def test_rows_are_known_by_their_addresses(catalog, tmp_path):
    trained = trained_rows(catalog, side(f"{tmp_path}/b.jpg", f"{tmp_path}/elsewhere.jpg"))
    assert trained.tolist() == [False, True, False]


def test_of_an_old_bundle_nothing_is_known(catalog):
    assert trained_rows(catalog, Side("models/x/1", None, None)).tolist() == [False] * 3


def test_a_warning_says_how_many(catalog, tmp_path, capsys):
    warn_of_trained_rows(catalog, {"model": side(f"{tmp_path}/a.jpg", f"{tmp_path}/c.jpg")})
    assert '"event": "warning"' in (said := capsys.readouterr().out)
    assert '"trained_on": 2' in said
