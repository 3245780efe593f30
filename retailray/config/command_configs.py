"""What each command reads: one class each (``train`` and ``tune``: ``fine_tuning.py``)."""

from typing import Literal

from pydantic import Field

from retailray.config.catalog import (
    CalibrationCatalog,
    CatalogSection,
    CheckSection,
    DemoSection,
    SplitSection,
    TaxonomySection,
)
from retailray.config.cluster import (
    ClusterSection,
    DoctorCatalog,
    DoctorModel,
    DoctorSection,
    KuberaySection,
    SubmitSection,
)
from retailray.config.common import OF_PREDICTORS, CommandConfig, ignored_splits, taken_names
from retailray.config.own_models import OwnModelSection
from retailray.config.retrieval import EmbeddingsSection, SimilarSection
from retailray.config.scoring import (
    CompareSection,
    EvaluateSection,
    NightlySection,
    PromoteSection,
    RollbackSection,
    ScoreSection,
)
from retailray.config.shop import (
    AssortmentSection,
    ForecastSection,
    InteractionsSection,
    OptionalEmbeddings,
    ProductsSection,
    RecommendSection,
    RequiredInteractions,
    SalesSection,
    ShoppersSection,
)
from retailray.config.training import BackboneSection, BundleSection, TrackSection

# of the tables that the commands write, beside the user's column
FORECAST_COLUMNS = ("date", "horizon", "forecast", "low", "high", "method")
SHOPPERS_COLUMNS = ("recency_days", "baskets", "money", "favourite_categories", "style_affinity", "segment")
ASSORTMENT_COLUMNS = ("image", "pred_label", "pred_score", "units", "money", "buyers", "baskets", "segment",
                      "segment_lift", "bought_with", "bought_with_lift", "forecast", "forecast_method")  # fmt: skip
SCALING = frozenset({"cluster.request_cpus", "cluster.request_gpus", "cluster.resource_timeout_s"})


def _unread_products(products: ProductsSection) -> list[str]:
    if products.uri and not products.category:
        return ["products.uri would be ignored: only its column products.category is read, which is not given"]
    return []


def _unsought_findings(check: CheckSection) -> list[str]:
    if "label_errors" in check.fail_on and not check.label_errors:
        return ["check.fail_on names label_errors, which are looked for with check.label_errors true only"]
    return []


class CheckConfig(CommandConfig):
    unused = CommandConfig.unused | OF_PREDICTORS | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()
    model: BackboneSection = BackboneSection()

    def problems(self) -> list[str]:
        problems = ignored_splits(self.catalog, self.split)
        if self.check.label_errors and not (self.check.model or self.model.arch):
            problems.append("check.label_errors needs a model: model.arch with model.weights, or a bundle: check.model")
        return problems + _unsought_findings(self.check)


class EvaluateConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    taxonomy: TaxonomySection = TaxonomySection()
    evaluate: EvaluateSection = EvaluateSection()

    def problems(self) -> list[str]:
        given = [f"catalog.{name}" for name in ("split", "validation_uri", "test_uri") if getattr(self.catalog, name)]
        defaults = SplitSection()
        given += [
            f"split.{name}"
            for name in SplitSection.model_fields
            if getattr(self.split, name) != getattr(defaults, name)
        ]
        if given and self.evaluate.split == "all":
            return [f"{', '.join(given)} would be ignored: evaluate.split is all; set it to train, validation or test"]
        return ignored_splits(self.catalog, self.split)


class CompareConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    compare: CompareSection


class PromoteConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    promote: PromoteSection = PromoteSection()
    track: TrackSection = TrackSection()


class RollbackConfig(CommandConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields)})
    out: str = Field(".", description="Not used.")
    model: BundleSection
    rollback: RollbackSection = RollbackSection()
    track: TrackSection = TrackSection()


class ScoreConfig(CommandConfig):
    unused = CommandConfig.unused | {"catalog.split", "catalog.validation_uri", "catalog.test_uri"}
    catalog: CatalogSection
    model: BundleSection
    taxonomy: TaxonomySection = TaxonomySection()
    score: ScoreSection = ScoreSection()


class EmbedConfig(ScoreConfig):
    unused = ScoreConfig.unused | {"score.embeddings"}


class SimilarConfig(CommandConfig):
    embeddings: EmbeddingsSection
    similar: SimilarSection = SimilarSection()


class RecommendConfig(CommandConfig):
    unused = CommandConfig.unused | OF_PREDICTORS | {"products.category"}
    interactions: RequiredInteractions
    products: ProductsSection = ProductsSection()
    embeddings: OptionalEmbeddings = OptionalEmbeddings()
    recommend: RecommendSection = RecommendSection()

    def problems(self) -> list[str]:
        problems = []
        if self.recommend.unsold and not self.embeddings.uri:
            problems.append("recommend.unsold needs embeddings.uri: what nobody has bought is known by its pictures")
        if self.recommend.unsold > self.recommend.top_k:
            problems.append("recommend.unsold is more than recommend.top_k, of whose places it is the number")
        if self.recommend.where and not self.products.uri:
            problems.append("recommend.where needs products.uri: the table whose columns it names")
        names = {"interactions.shopper": self.interactions.shopper, "interactions.product": self.interactions.product}
        return problems + taken_names(names, ("rank", "score", "reason"))


class ForecastConfig(CommandConfig):
    unused = CommandConfig.unused | OF_PREDICTORS | {"interactions.shopper", "interactions.basket"}
    sales: SalesSection = SalesSection()
    interactions: InteractionsSection = InteractionsSection()
    products: ProductsSection = ProductsSection()
    embeddings: OptionalEmbeddings = OptionalEmbeddings()
    forecast: ForecastSection = ForecastSection()

    def problems(self) -> list[str]:
        if bool(self.sales.uri) == bool(self.interactions.uri):
            both = "both are given" if self.sales.uri else "none is given"
            return [f"sales.uri or interactions.uri names what was sold: {both}"]
        unused = self.interactions if self.sales.uri else self.sales
        name = "interactions" if self.sales.uri else "sales"
        if given := sorted(unused.non_default_fields()):
            return [f"{name}.{given[0]} would be ignored: {name}.uri is not given"]
        used = self.sales if self.sales.uri else self.interactions
        names = {f"{'sales' if self.sales.uri else 'interactions'}.product": used.product}
        return taken_names(names, FORECAST_COLUMNS) + _unread_products(self.products)


class ShoppersConfig(CommandConfig):
    unused = frozenset(f"cluster.{name}" for name in ClusterSection.model_fields)
    interactions: RequiredInteractions
    products: ProductsSection = ProductsSection()
    embeddings: OptionalEmbeddings = OptionalEmbeddings()
    shoppers: ShoppersSection = ShoppersSection()

    def problems(self) -> list[str]:
        taken = taken_names({"interactions.shopper": self.interactions.shopper}, SHOPPERS_COLUMNS)
        return taken + _unread_products(self.products)


class AssortmentConfig(CommandConfig):
    unused = CommandConfig.unused | OF_PREDICTORS | {"shoppers.as_of"}
    interactions: RequiredInteractions
    products: ProductsSection = ProductsSection()
    embeddings: EmbeddingsSection
    forecast: ForecastSection = ForecastSection()
    shoppers: ShoppersSection = ShoppersSection()
    assortment: AssortmentSection = AssortmentSection()

    def problems(self) -> list[str]:
        product = {"interactions.product": self.interactions.product}
        taken = taken_names(product, (*ASSORTMENT_COLUMNS, *FORECAST_COLUMNS))
        taken += taken_names({"interactions.shopper": self.interactions.shopper}, SHOPPERS_COLUMNS)
        return list(dict.fromkeys(taken)) + _unread_products(self.products)


class ExportConfig(CommandConfig):
    unused = frozenset(f"cluster.{name}" for name in ClusterSection.model_fields)
    model: BundleSection


class BundleConfig(CommandConfig):
    unused = CommandConfig.unused | {"catalog.split", "catalog.validation_uri", "catalog.test_uri"}
    catalog: CalibrationCatalog = CalibrationCatalog()
    bundle: OwnModelSection
    taxonomy: TaxonomySection = TaxonomySection()

    def problems(self) -> list[str]:
        given = sorted(self.catalog.non_default_fields())
        if given and not self.catalog.uri:
            return [f"catalog.{', catalog.'.join(given)} would be ignored: catalog.uri names no catalog"]
        if (self.bundle.registry is None) != (self.bundle.name is None):
            return ["bundle.registry and bundle.name go together: one is given and the other is not"]
        return []


class DemoConfig(CommandConfig):
    out: str = Field("demo-run", description="Folder for the catalog, the models and the reports.")
    demo: DemoSection = DemoSection()


class SubmitConfig(CommandConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields if name != "address")})
    out: str = Field(".", description="Setting of the submitted command.")
    detach: bool = Field(False, description="Submit the job, print its id and return.")
    render: Literal["kuberay"] | None = Field(None, description="Print Kubernetes manifests instead of submitting.")
    submit: SubmitSection = SubmitSection()
    kuberay: KuberaySection = KuberaySection()

    def problems(self) -> list[str]:
        given = [f"submit.{name}" for name in ("id", "requirements", "python") if getattr(self.submit, name)]
        given += ["detach"] if self.detach else []
        if self.render and given:
            return [f"{', '.join(given)} would be ignored: render prints manifests, and submits nothing"]
        return []


class NightlyConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds", "score.plan_only"}
    out: str = Field(description="Folder for the results; run directories go to its subfolders checks and scores.")
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()
    model: BundleSection
    taxonomy: TaxonomySection = TaxonomySection()
    score: ScoreSection = ScoreSection()
    nightly: NightlySection = NightlySection()

    @property
    def checks(self) -> bool:
        """Whether the catalog is checked before it is scored."""
        given = bool(self.check.non_default_fields())
        return given if self.nightly.check is None else self.nightly.check

    def problems(self) -> list[str]:
        problems = ignored_splits(self.catalog, self.split) if self.checks else []
        if not self.checks and (given := sorted(self.check.non_default_fields())):
            problems += [f"check.{name} would be ignored: nightly.check is false" for name in given]
        return problems + _unsought_findings(self.check)


class DoctorConfig(CommandConfig):
    unused = frozenset({f"cluster.{name}" for name in ClusterSection.model_fields} - SCALING - {"cluster.address"})
    out: str = Field("", description="Folder that workers must be able to write to; default: not tested.")
    catalog: DoctorCatalog = DoctorCatalog()
    model: DoctorModel = DoctorModel()
    doctor: DoctorSection = DoctorSection()
