"""One cluster of several nodes for the tests of this room."""

import contextlib

import pytest
import s3fs

from tests.cluster.nodes import BUCKET, TOKEN, Nodes


@pytest.fixture(scope="package")
def nodes(tmp_path_factory, s3_endpoint):
    cluster = Nodes(tmp_path_factory.mktemp("nodes"), token=TOKEN)
    for name in "abc":
        cluster.add(name)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="package")
def shop(nodes):
    """The made-up catalog in a bucket; the settings that name it."""
    from retailray.data.synthetic import write_catalog

    with contextlib.suppress(FileExistsError):  # a module of another folder came between two of this one
        s3fs.S3FileSystem().mkdir(BUCKET)
    write_catalog(f"s3://{BUCKET}/shop", num_images=96, label_noise=0.0, seed=3)
    return {
        "catalog.uri": f"s3://{BUCKET}/shop/catalog.csv",
        "catalog.group": "sku",
        "catalog.max_pixels": 20_000_000,
    }
