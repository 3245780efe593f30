"""``embed`` and ``similar``: neighbours by all cosines of the published embeddings, worked out by numpy and pandas."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import s3fs

from retailray.data.synthetic import write_catalog
from tests.commands.helpers import events, latest, read_json, words_of

pytestmark = pytest.mark.slow
LIMITS = {"catalog.max_pixels": 20_000_000, "score.max_error_rate": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("model")
    write_catalog(str(folder / "catalog"), num_images=200, label_noise=0.0, seed=30)
    settings = {"catalog.uri": folder / "catalog/catalog.csv", "catalog.group": "sku", "model.arch": "cnn3",
                "transform.image_size": 32, "transform.resize_size": 36, "catalog.max_pixels": 20_000_000,
                "train.epochs": 5, "train.batch_size": 16, "out": folder / "train"}  # fmt: skip
    assert main(words_of("train", settings)) == 0
    return f"{latest(str(folder / 'train'))}/bundle"


@pytest.fixture(scope="module")
def shop(model, tmp_path_factory):
    """A catalog with brands and stock, scored with embeddings."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("similar")
    write_catalog(str(folder), num_images=160, label_noise=0.0, seed=31)
    rows = pd.read_csv(folder / "catalog.csv", dtype=str)
    number = rows.sku.astype(int)
    rows["brand"], rows["in_stock"] = (
        "b" + (number % 4).astype(str),
        (number % 3 > 0).map({True: "true", False: "false"}),
    )
    rows.to_csv(folder / "catalog.csv", index=False)
    settings = {
        "catalog.uri": folder / "catalog.csv",
        "catalog.group": "sku",
        "model.uri": model,
        "out": folder / "scores",
    }
    assert main(["embed", *words_of("score", settings | LIMITS)[1:]]) == 0
    return folder


@pytest.fixture
def similar(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {"embeddings.uri": shop / "scores", "cluster.engine": "inline", "out": tmp_path / "similar"}
        done, told, err = retailray("similar", **settings | changes)
        assert done == code, err
        return (latest(str(tmp_path / "similar")), events(told)) if code == 0 else err

    return run


def embeddings(run, folder="product_embeddings"):
    table = duckdb.sql(f"from '{run}/{folder}/*.parquet' order by id").df()
    vectors = np.stack(table.embedding.to_numpy()).astype(np.float64)
    return table.id.tolist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def audit(run, ids, vectors, *, k=10, may=lambda one, other: True):
    """Differences between ``similar/`` and all cosines."""
    found = duckdb.sql(f"from '{run}/similar/*.parquet'").df()
    cosines, problems = vectors @ vectors.T, []
    by_id = {name: rows.sort_values("rank") for name, rows in found.groupby("id")}
    for at, name in enumerate(ids):
        fit = np.array([other for other in range(len(ids)) if other != at and may(name, ids[other])], int)
        best = np.sort(cosines[at, fit])[::-1][:k]
        rows = by_id.get(name)
        if rows is None or rows["rank"].tolist() != list(range(1, len(best) + 1)):
            problems += [f"{name}: ranks"] if len(best) else []
            continue
        places = [ids.index(other) for other in rows.neighbour]
        if not np.allclose(rows.similarity, best, atol=3e-3) or not np.allclose(cosines[at, places], best, atol=3e-3):
            problems.append(f"{name}: {rows.similarity.tolist()}, not {best.tolist()}")
        if not set(places) <= set(fit.tolist()) or len(set(places)) != len(places):
            problems.append(f"{name}: {rows.neighbour.tolist()}")
    return problems


def test_embeddings_are_what_enters_the_head_and_means_of_products(shop, model):
    """The bundle's own head, by numpy, makes of them what was predicted; means by numpy."""
    run = latest(str(shop / "scores"))
    table = duckdb.sql(f"from '{run}/embeddings/*.parquet'").df()
    predictions = duckdb.sql(f"from '{run}/predictions/*.parquet'").df()
    assert sorted(table.id) == sorted(predictions.image)
    assert set(table.model_version) == set(predictions.model_version)
    assert pd.read_parquet(f"{run}/embeddings").embedding[0].dtype == np.float16
    from safetensors.numpy import load_file

    state = load_file(f"{model}/model.safetensors")
    weight, bias = state["head.weight"].reshape(8, -1), state["head.bias"]
    logits = np.stack(table.embedding.to_numpy()) @ weight.T + bias
    labels = np.array(read_json(f"{model}/bundle.json")["labels"])
    told = predictions.set_index("image").pred_label[table.id].to_numpy()
    assert (labels[logits.argmax(1)] == told).mean() > 0.97, "the head makes of them what was predicted"
    products = duckdb.sql(f"from '{run}/product_embeddings/*.parquet' order by id").df()
    sku = predictions.set_index("image").sku[table.id].to_numpy()
    vectors = np.stack(table.embedding.to_numpy()).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert products.id.tolist() == sorted(set(sku))
    for row in products.itertuples():
        mean = unit[sku == row.id].mean(0)
        np.testing.assert_allclose(row.embedding, mean / np.linalg.norm(mean), atol=2e-3)
        assert row.image in set(table.image[sku == row.id])


def test_neighbours_are_those_of_all_cosines(shop, similar):
    run, told = similar(**{"similar.k": 5, "similar.near_duplicates": 0.9})
    ids, vectors = embeddings(latest(str(shop / "scores")))
    assert audit(run, ids, vectors, k=5) == []
    near = pd.read_parquet(f"{run}/near_duplicates.parquet")
    cosines = vectors @ vectors.T
    for row in near.itertuples():
        assert cosines[ids.index(row.id), ids.index(row.neighbour)] == pytest.approx(row.similarity, abs=3e-3)
    assert len(near) == len({frozenset(pair) for pair in zip(near.id, near.neighbour, strict=True)})
    assert near.similarity.min() >= 0.9
    assert told[-1]["near_duplicates"] == len(near)
    page = Path(run, "report.html").read_text()
    assert "Near duplicates" in page
    assert "data:image/jpeg" in page


def test_columns_of_the_catalog_say_who_may_be_a_neighbour(shop, similar):
    filters = {"similar.same": "label", "similar.different": "brand", "similar.where": '{"in_stock": "true"}'}
    run, _ = similar(**filters)
    ids, vectors = embeddings(latest(str(shop / "scores")))
    facts = pd.read_csv(shop / "catalog.csv", dtype=str).drop_duplicates("sku").set_index("sku")

    def may(one, other):
        same = facts.label[one] == facts.label[other] and facts.brand[one] != facts.brand[other]
        return same and facts.in_stock[other] == "true"

    assert audit(run, ids, vectors, may=may) == []
    assert "'colour'" in similar(code=1, **{"similar.same": "colour"})


def test_images_can_be_compared_too(shop, similar):
    run, _ = similar(**{"similar.level": "image"})
    ids, vectors = embeddings(latest(str(shop / "scores")), "embeddings")
    assert audit(run, ids, vectors) == []


def test_only_what_changed_is_searched_and_the_table_is_that_of_a_fresh_run(shop, similar, retailray, tmp_path):
    """New, changed and removed rows against a run that knows nothing: equal neighbours everywhere."""
    source = embeddings_table(latest(str(shop / "scores")))
    folder = tmp_path / "vectors"
    folder.mkdir()
    generator = np.random.default_rng(0)
    first = source.iloc[:-4]
    first.to_parquet(folder / "a.parquet")
    run, told = similar(**{"embeddings.uri": folder})
    assert (told[-1]["searched"], told[-1]["level"]) == (len(first), "image")
    run, told = similar(**{"embeddings.uri": folder})
    assert told[-1]["searched"] == 0
    changed = source.drop(index=source.index[[3, 4]]).reset_index(drop=True)
    changed.at[10, "embedding"] = generator.normal(size=64).astype(np.float16)
    changed.sample(frac=1, random_state=1).to_parquet(folder / "a.parquet")
    run, told = similar(**{"embeddings.uri": folder})
    assert 5 <= told[-1]["searched"] < 0.7 * len(changed)
    settings = {"embeddings.uri": folder, "out": tmp_path / "fresh", "cluster.engine": "inline"}
    assert retailray("similar", **settings)[0] == 0
    fresh = latest(str(tmp_path / "fresh"))
    ids = changed.id.tolist()
    vectors = np.stack(changed.embedding.to_numpy()).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert audit(run, ids, vectors) == audit(fresh, ids, vectors) == []
    tables = [duckdb.sql(f"from '{one}/similar/*.parquet' order by id, rank").df() for one in (run, fresh)]
    np.testing.assert_allclose(tables[0].similarity, tables[1].similarity, atol=1e-3)
    run, told = similar(**{"embeddings.uri": folder, "similar.k": 3})
    assert told[-1]["searched"] == len(changed), "other settings, other neighbours"


def embeddings_table(run):
    return pd.read_parquet(f"{run}/product_embeddings")[["id", "embedding", "model_version"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.assign(model_version=["v1", *table.model_version[1:]]), "of the models"),
        (lambda table: pd.concat([table, table.head(1)]), "comes 2 times"),
        (lambda table: table.assign(embedding=[table.embedding[0][:8], *table.embedding[1:]]), "cannot be compared"),
        (lambda table: table.assign(embedding=[table.embedding[0] * np.nan, *table.embedding[1:]]), "not finite"),
        (lambda table: table.drop(columns="embedding"), "no column embedding"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_told(shop, similar, tmp_path, change, words):
    (tmp_path / "vectors").mkdir()
    change(embeddings_table(latest(str(shop / "scores")))).to_parquet(tmp_path / "vectors/a.parquet")
    assert words in similar(code=1, **{"embeddings.uri": tmp_path / "vectors"})


def test_what_is_not_there_is_told(shop, similar, tmp_path, model, retailray):
    assert "there are no embeddings" in similar(code=1, **{"embeddings.uri": tmp_path})
    (tmp_path / "vectors").mkdir()
    embeddings_table(latest(str(shop / "scores"))).to_parquet(tmp_path / "vectors/a.parquet")
    told = similar(code=2, **{"embeddings.uri": tmp_path / "vectors", "similar.same": "label"})
    assert "need a run of `score`" in told
    settings = {"catalog.uri": shop / "catalog.csv", "model.uri": model, "out": tmp_path / "plain"} | LIMITS
    assert retailray("score", **settings)[0] == 0
    assert "there are no embeddings" in similar(code=1, **{"embeddings.uri": tmp_path / "plain"})


def test_a_projection_keeps_similarities_and_a_night_without_changes_infers_nothing(shop, model, retailray, tmp_path):
    settings = {"catalog.uri": shop / "catalog.csv", "catalog.group": "sku", "model.uri": model, "out": tmp_path}
    settings |= LIMITS | {"score.embedding_size": 48}
    assert retailray("embed", **settings)[0] == 0
    first = latest(str(tmp_path))
    _, projected = embeddings(first, "embeddings")
    _, whole = embeddings(latest(str(shop / "scores")), "embeddings")
    assert projected.shape[1] == 48
    cosines = [(rows @ rows.T)[np.triu_indices(len(rows), 1)] for rows in (projected, whole)]
    assert np.corrcoef(*cosines)[0, 1] > 0.9
    code, out, _ = retailray("embed", **settings)
    assert (code, events(out)[-1]["scored"]) == (0, 0)
    code, out, _ = retailray("score", **settings)
    assert (code, events(out)[-1]["scored"]) == (0, 0), "without embeddings nothing is new either"
    assert not Path(latest(str(tmp_path)), "embeddings").exists()
    code, out, _ = retailray("embed", **settings)
    assert (code, events(out)[-1]["scored"]) == (0, 0), "and they were kept meanwhile"
    second = latest(str(tmp_path))
    tables = [pd.read_parquet(f"{run}/embeddings").drop(columns="run_id") for run in (first, second)]
    pd.testing.assert_frame_equal(*tables)
    code, out, _ = retailray("embed", **settings | {"score.embedding_size": 16})
    assert (code, events(out)[-1]["reused"]) == (0, 0), "another size"


@pytest.mark.s3
def test_on_a_store_and_on_ray_it_is_the_same(shop, ray_session_cpus, retailray, s3_endpoint):
    fs = s3fs.S3FileSystem()
    fs.mkdir("similar")
    run = latest(str(shop / "scores"))
    table = embeddings_table(run)
    with fs.open("similar/vectors/a.parquet", "wb") as file:
        table.to_parquet(file)
    settings = {"embeddings.uri": "s3://similar/vectors", "cluster.engine": "ray", "out": "s3://similar/out"}
    code, _, err = retailray("similar", **settings)
    assert code == 0, err
    found = latest("s3://similar/out")
    local = pd.concat([pd.read_parquet(f"s3://{name}") for name in fs.find(f"{found}/similar".removeprefix("s3://"))])
    vectors = np.stack(table.embedding.to_numpy()).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    best = local[local["rank"] == 1].set_index("id").similarity[table.id]
    np.testing.assert_allclose(best, cosines.max(1), atol=3e-3)
    assert not [name for name in fs.find("similar/out") if name.endswith("index.faiss")]
