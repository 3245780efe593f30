"""The public functions: pinned, quiet, and the same as the commands."""

import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import yaml

import retailray
from retailray.errors import ConfigError, StorageError

TINY = {
    "transform": {"image_size": 32, "resize_size": 36},
    "model": {"arch": "cnn1"},
    "train": {"epochs": 2, "batch_size": 16, "precision": "float32"},
}
VALIDATION = {"split": "validation"}


def test_the_surface_is_pinned():
    """A name, an argument or a column that goes breaks somebody's notebook: say so in CHANGELOG and change it here."""
    functions = ["check", "evaluate", "score", "study", "train", "tune"]
    functions += ["recommend", "forecast", "shoppers", "assortment"]
    results = ["CheckRun", "EvaluateRun", "Run", "ScoreRun", "StudyRun", "TrainRun", "TuneRun"]
    results += ["RecommendRun", "ForecastRun", "ShoppersRun", "AssortmentRun"]
    assert sorted(retailray.__all__) == sorted(functions + results)
    for name in functions:
        assert str(inspect.signature(getattr(retailray, name))).startswith(
            "(*, config: str | os.PathLike[str] | collections.abc.Sequence[str | os.PathLike[str]] = (), "
            "quiet: bool = True, **settings: Any)"
        )
    surface = {
        "Run": {"address", "latest", "path", "read", "report", "show", "summary", "table"},
        "CheckRun": {"errors", "facts", "findings", "images"},
        "TrainRun": {"bundle", "curves", "history", "verdict"},
        "TuneRun": {"best_config", "bundle", "epochs", "trials", "verdict"},
        "EvaluateRun": {"confusion", "confusion_plot", "errors", "metrics", "per_class", "predictions"},
        "ScoreRun": {"errors", "predictions"},
        "StudyRun": {"facts", "fits", "pairs", "predictions"},
        "RecommendRun": {"errors", "recommendations"},
        "ForecastRun": {"errors", "forecasts"},
        "ShoppersRun": {"demand", "errors", "retention", "segments", "shoppers"},
        "AssortmentRun": {"errors", "products"},
    }
    for name, members in surface.items():
        own = {member for member in vars(getattr(retailray, name)) if not member.startswith("_")}
        assert own == members - {"address", "summary"}, name


@pytest.mark.slow
def test_importing_the_package_costs_nothing():
    code = "import sys, retailray; print(sorted({'torch', 'pandas', 'ray', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def shop(small_catalog):
    folder, planted = small_catalog
    catalog = {"uri": folder / "catalog.csv", "group": "sku", "max_pixels": 20_000_000}
    return catalog, planted


@pytest.fixture(scope="module")
def model(shop, tmp_path_factory):
    catalog, _ = shop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return retailray.train(catalog=catalog, out=tmp_path_factory.mktemp("train"), **TINY)


@pytest.mark.slow
class TestFunctions:
    def test_check(self, shop, tmp_path, capfd):
        catalog, planted = shop
        found = retailray.check(catalog=catalog, out=tmp_path)
        assert found.facts["num_rows"] - found.facts["num_images_ok"] == planted["num_broken"] == len(found.errors)
        assert {"name", "count", "advice"} <= set(found.findings.columns)
        assert len(found.images) == planted["num_rows"]
        assert capfd.readouterr().out == "", "a notebook shows what is asked for"

    def test_train(self, model):
        assert model.history.epoch.tolist() == [1, 2]
        assert model.verdict.startswith(model.summary["verdict"])
        assert model.curves().data.startswith(b"\x89PNG")
        assert "text/html" in model.show().src[:40]

    def test_evaluate_and_score_take_the_run_for_a_model(self, shop, model, tmp_path):
        catalog, planted = shop
        measured = retailray.evaluate(catalog=catalog, model=model, evaluate=VALIDATION, out=tmp_path / "e")
        assert measured.metrics["num_rows"] == measured.confusion.to_numpy().sum() == measured.per_class.support.sum()
        scored = retailray.score(catalog=catalog, model=model, score={"max_error_rate": 1.0}, out=tmp_path / "s")
        assert len(scored.predictions) + len(scored.errors) == planted["num_rows"]
        assert scored.predictions.equals(retailray.ScoreRun.latest(tmp_path / "s").predictions)
        by_hand = pd.concat([pd.read_parquet(path) for path in sorted((tmp_path / "s").glob("run_id=*/predictions/*"))])
        pd.testing.assert_frame_equal(scored.predictions, by_hand.reset_index(drop=True), check_dtype=False)

    def test_files_and_keywords(self, shop, model, tmp_path):
        """Keywords win over files, as the command line does; dotted keys are settings too."""
        catalog, _ = shop
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({"catalog": {"uri": "nowhere.csv", "label": "no_such"}}))
        (tmp_path / "b.yaml").write_text(yaml.safe_dump({"evaluate": {"split": "validation", "bootstrap": 0}}))
        files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
        more = {"catalog.label": "true_label", "catalog.max_pixels": 20_000_000, "catalog.group": "sku"}
        run = retailray.evaluate(config=files, catalog=catalog["uri"], model=model.bundle, out=tmp_path, **more)
        settings = yaml.safe_load(run.read("config.yaml"))
        assert settings["catalog"]["label"] == "true_label"
        assert settings["evaluate"]["bootstrap"] == 0

    def test_what_warns_is_a_warning(self, shop, model, tmp_path):
        catalog, _ = shop
        renamed = catalog | {"label_map": {"mug": "cup"}}
        with pytest.warns(UserWarning, match="labels_unknown_to_the_model"):
            retailray.evaluate(catalog=renamed, model=model, out=tmp_path, evaluate={"split": "all"})

    def test_a_script_of_five_lines(self, shop, tmp_path):
        """The one of docs/api.md, in a process of its own; events are shown where they are asked for."""
        catalog, _ = shop
        code = f"""
import retailray

found = retailray.check(catalog={str(catalog["uri"])!r}, out={str(tmp_path)!r}, quiet=False)
print(found.findings[["name", "count"]].to_string())
"""
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert '"event": "summary"' in ended.stdout
        assert "exact_duplicates" in ended.stdout


def test_all_that_is_wrong_is_said_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        retailray.train(catalog={"url": "x.csv"}, trian={"epochs": 3}, train={"epochs": 0}, out=tmp_path)
    text = "\n".join(error.value.problems)
    assert "catalog.url (keyword): unknown key; did you mean catalog.uri?" in text
    assert "trian.epochs (keyword): unknown key; did you mean train.epochs?" in text
    assert "train.epochs = 0 (keyword)" in text
    assert "catalog.uri: required and not given" in text


def test_a_table_that_is_not_there_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StorageError, match="there is no such table"):
        retailray.Run(str(tmp_path)).table("predictions")


def test_a_function_can_be_called_again(tmp_path):
    """Kind of fault: a package of the same name takes the place of the function once it was imported."""
    rows = [(f"s{at % 30}", f"2025-{1 + at % 9:02d}-0{1 + at % 7}", f"p{at % 3}") for at in range(600)]
    pd.DataFrame(rows, columns=["shopper", "time", "product"]).to_csv(tmp_path / "rows.csv", index=False)
    for _ in range(2):
        found = retailray.shoppers(interactions=tmp_path / "rows.csv", out=tmp_path / "shoppers")
        assert len(found.shoppers) == 30
    for name in retailray.__all__:
        assert callable(getattr(retailray, name)), name
    packages = {path.parent.name for path in Path(retailray.__file__).parent.glob("*/__init__.py")}
    packages |= {path.stem for path in Path(retailray.__file__).parent.glob("*.py")}
    assert not packages & set(retailray.__all__)
