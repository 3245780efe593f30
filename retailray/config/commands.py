"""The commands: one record each.

To add one: a config class in ``command_configs.py``, a record here, its function, and a thin file in ``jobs/``. The
command line, its help, ``submit`` and tests are derived from the records.
"""

import dataclasses

from retailray.config.command_configs import (
    AssortmentConfig,
    BundleConfig,
    CheckConfig,
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    ForecastConfig,
    NightlyConfig,
    PromoteConfig,
    RecommendConfig,
    RollbackConfig,
    ScoreConfig,
    ShoppersConfig,
    SimilarConfig,
    SubmitConfig,
)
from retailray.config.common import CommandConfig
from retailray.config.fine_tuning import TrainConfig, TuneConfig
from retailray.config.study import StudyConfig


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: the word on the command line.
        summary: one line for the list of commands.
        config: what it reads; its function takes an instance (``submit``: the arguments).
        function: ``module:function``, imported when the command runs, so that ``--help`` and bad input answer at once.
        example: arguments for the end of ``--help``.
        after_interrupt: what the user can do after Ctrl-C.
        uses_gpus: whether a cluster that scales itself is asked for a GPU.
    """

    name: str
    summary: str
    config: type[CommandConfig]
    function: str
    example: str = ""
    after_interrupt: str = "only run directories with a _SUCCESS file are complete"
    uses_gpus: bool = False


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo",
            "run the whole pipeline on a generated catalog, in a few minutes",
            DemoConfig,
            "retailray.demo:run_demo",
            example="--out demo-run",
        ),
        Command(
            "check",
            "find what is wrong with a catalog: broken images, duplicates, leakage, bad labels",
            CheckConfig,
            "retailray.quality.check:check",
            example="--catalog.uri s3://shop/catalog.csv --out s3://shop/checks",
        ),
        Command(
            "train",
            "fine-tune a pretrained model on a labelled catalog",
            TrainConfig,
            "retailray.training.train:train",
            example="--catalog.uri catalog.csv --model.arch resnet50 --model.weights weights.pth --out runs",
            after_interrupt="the same command with --train.resume continues from the last checkpoint",
            uses_gpus=True,
        ),
        Command(
            "bundle",
            "make a bundle of a model that was trained elsewhere: torchvision, timm, Hugging Face",
            BundleConfig,
            "retailray.own_models.bundle:make_bundle",
            example="--bundle.source weights.pth --bundle.arch resnet50 --bundle.labels labels.txt --catalog.uri "
            "catalog.csv --out bundles",
            uses_gpus=True,
        ),
        Command(
            "tune",
            "search freeze depth, learning rates and other settings of train",
            TuneConfig,
            "retailray.tuning.tune:tune",
            example="--catalog.uri catalog.csv --model.arch resnet50 --model.weights weights.pth --tune.trials 20 "
            "--out searches",
            after_interrupt="the same command with --tune.resume continues; finished trials are kept",
            uses_gpus=True,
        ),
        Command(
            "study",
            "train several models with several seeds on the same rows, and say which is better",
            StudyConfig,
            "retailray.studies.study:study",
            example="--config jobs/configs/article.yaml",
            after_interrupt="the same command with --study.resume continues; finished fits are kept",
            uses_gpus=True,
        ),
        Command(
            "evaluate",
            "measure the accuracy of a bundle on a labelled catalog",
            EvaluateConfig,
            "retailray.evaluation.evaluate:evaluate",
            example="--catalog.uri catalog.csv --model.uri models/shop@champion --evaluate.split test --out reports",
            uses_gpus=True,
        ),
        Command(
            "compare",
            "compare two bundles on the same rows: which is better, which predictions change",
            CompareConfig,
            "retailray.evaluation.compare:compare",
            example="--catalog.uri catalog.csv --model.uri models/shop/v2 --compare.baseline models/shop@champion "
            "--out comparisons",
            uses_gpus=True,
        ),
        Command(
            "promote",
            "make a model version @champion if it is not worse than the present one",
            PromoteConfig,
            "retailray.evaluation.promote:promote",
            example="--catalog.uri catalog.csv --model.uri models/shop/v2 --out promotions",
            uses_gpus=True,
        ),
        Command(
            "rollback",
            "make the version before @champion again",
            RollbackConfig,
            "retailray.evaluation.promote:rollback",
            example="--model.uri models/shop@champion",
        ),
        Command(
            "export",
            "write a bundle as an ONNX file, for services that run without retailray",
            ExportConfig,
            "retailray.export:export",
            example="--model.uri models/shop@champion --out exports",
        ),
        Command(
            "score",
            "classify a whole catalog and publish the tables",
            ScoreConfig,
            "retailray.scoring.score:score",
            example="--catalog.uri s3://shop/catalog.csv --model.uri s3://shop/models/shop@champion "
            "--out s3://shop/scores",
            after_interrupt="the same command continues; images that are scored are not scored again",
            uses_gpus=True,
        ),
        Command(
            "embed",
            "score a catalog and publish the embeddings of its images and products too",
            EmbedConfig,
            "retailray.scoring.score:embed",
            example="--catalog.uri s3://shop/catalog.csv --model.uri s3://shop/models/shop@champion "
            "--out s3://shop/scores",
            after_interrupt="the same command continues; images that are scored are not scored again",
            uses_gpus=True,
        ),
        Command(
            "similar",
            "find the most similar products (or images) by their embeddings, and near duplicates",
            SimilarConfig,
            "retailray.retrieval.similar:similar",
            example="--embeddings.uri s3://shop/scores --out s3://shop/similar",
        ),
        Command(
            "recommend",
            "recommend products to every shopper, by the method that did best on the latest purchases",
            RecommendConfig,
            "retailray.recommendation.recommend:recommend",
            example="--interactions.uri s3://shop/purchases.parquet --out s3://shop/recommendations",
        ),
        Command(
            "forecast",
            "forecast the sales of every product, by the method that did best on the latest periods",
            ForecastConfig,
            "retailray.forecasting.forecast:forecast",
            example="--sales.uri s3://shop/sales.parquet --out s3://shop/forecasts",
        ),
        Command(
            "shoppers",
            "describe the shoppers: figures of each, segments that buy alike, who comes again",
            ShoppersConfig,
            "retailray.segmentation.shoppers:shoppers",
            example="--interactions.uri s3://shop/purchases.parquet --out s3://shop/shoppers",
        ),
        Command(
            "assortment",
            "show products with their pictures, who buys them, what goes with them, what will be sold",
            AssortmentConfig,
            "retailray.assortments.assortment:assortment",
            example="--embeddings.uri s3://shop/scores --interactions.uri s3://shop/purchases.parquet "
            "--out s3://shop/assortment",
        ),
        Command(
            "nightly",
            "check (if asked for), plan and score a catalog, with one exit code",
            NightlyConfig,
            "retailray.nightly:nightly",
            example="--config night.yaml",
            after_interrupt="the same command continues; images that are scored are not scored again",
            uses_gpus=True,
        ),
        Command(
            "submit",
            "run any command as a job of a running cluster; attach to, stop and list jobs",
            SubmitConfig,
            "retailray.cluster.submit:submit",
        ),
        Command(
            "doctor",
            "test whether a cluster is ready: versions, storage, GPUs, disks, clocks",
            DoctorConfig,
            "retailray.cluster.doctor:doctor",
            example="--cluster.address http://head:8265 --catalog.uri s3://shop/catalog.csv --out s3://shop/runs",
        ),
    )
}
