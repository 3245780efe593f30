"""Every setting: its type, default, unit and one line of help.

Sections are frozen pydantic models; a command's config is the set of sections it reads. ``arguments.py`` fills them.
"""

from retailray.config.base import Section
from retailray.config.catalog import (
    CatalogSection,
    CheckSection,
    DemoSection,
    SplitSection,
    TaxonomySection,
    TransformSection,
)
from retailray.config.cluster import (
    ClusterSection,
    DoctorCatalog,
    DoctorModel,
    DoctorSection,
    KuberaySection,
    SubmitSection,
)
from retailray.config.commands import (
    COMMANDS,
    BundleConfig,
    CheckConfig,
    Command,
    CommandConfig,
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    NightlyConfig,
    PromoteConfig,
    RollbackConfig,
    ScoreConfig,
    SimilarConfig,
    StudyConfig,
    SubmitConfig,
    TrainConfig,
    TuneConfig,
)
from retailray.config.own_models import OwnModelSection
from retailray.config.retrieval import EmbeddingsSection, SimilarSection
from retailray.config.scoring import CompareSection, EvaluateSection, PromoteSection, RollbackSection, ScoreSection
from retailray.config.search import PASSES, TUNABLE, Domain, TuneSection
from retailray.config.study import StudyModel, StudySection
from retailray.config.training import BundleSection, ModelSection, Phase, TrackSection, TrainSection

__all__ = [
    "COMMANDS",
    "PASSES",
    "TUNABLE",
    "BundleConfig",
    "BundleSection",
    "CatalogSection",
    "CheckConfig",
    "CheckSection",
    "ClusterSection",
    "Command",
    "CommandConfig",
    "CompareConfig",
    "CompareSection",
    "DemoConfig",
    "DemoSection",
    "DoctorCatalog",
    "DoctorConfig",
    "DoctorModel",
    "DoctorSection",
    "Domain",
    "EmbedConfig",
    "EmbeddingsSection",
    "EvaluateConfig",
    "EvaluateSection",
    "ExportConfig",
    "KuberaySection",
    "ModelSection",
    "NightlyConfig",
    "OwnModelSection",
    "Phase",
    "PromoteConfig",
    "PromoteSection",
    "RollbackConfig",
    "RollbackSection",
    "ScoreConfig",
    "ScoreSection",
    "Section",
    "SimilarConfig",
    "SimilarSection",
    "SplitSection",
    "StudyConfig",
    "StudyModel",
    "StudySection",
    "SubmitConfig",
    "SubmitSection",
    "TaxonomySection",
    "TrackSection",
    "TrainConfig",
    "TrainSection",
    "TransformSection",
    "TuneConfig",
    "TuneSection",
]
