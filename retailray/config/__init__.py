"""Every setting: its type, default, unit and one line of help.

Sections are frozen pydantic models; a verb's config is the set of sections it reads. ``arguments.py`` fills them.
"""

from retailray.config.base import Section
from retailray.config.catalog import CatalogSection, CheckSection, DemoSection, SplitSection, TransformSection
from retailray.config.cluster import (
    ClusterSection,
    DoctorCatalog,
    DoctorModel,
    DoctorSection,
    KuberaySection,
    SubmitSection,
)
from retailray.config.commands import (
    VERBS,
    CheckConfig,
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    PromoteConfig,
    RollbackConfig,
    ScoreConfig,
    SubmitConfig,
    TrainConfig,
    TuneConfig,
    VerbConfig,
)
from retailray.config.scoring import CompareSection, EvaluateSection, PromoteSection, RollbackSection, ScoreSection
from retailray.config.search import PASSES, TUNABLE, Domain, TuneSection
from retailray.config.training import BundleSection, ModelSection, Phase, TrackSection, TrainSection

__all__ = [
    "PASSES",
    "TUNABLE",
    "VERBS",
    "BundleSection",
    "CatalogSection",
    "CheckConfig",
    "CheckSection",
    "ClusterSection",
    "CompareConfig",
    "CompareSection",
    "DemoConfig",
    "DemoSection",
    "DoctorCatalog",
    "DoctorConfig",
    "DoctorModel",
    "DoctorSection",
    "Domain",
    "EvaluateConfig",
    "EvaluateSection",
    "KuberaySection",
    "ModelSection",
    "Phase",
    "PromoteConfig",
    "PromoteSection",
    "RollbackConfig",
    "RollbackSection",
    "ScoreConfig",
    "ScoreSection",
    "Section",
    "SplitSection",
    "SubmitConfig",
    "SubmitSection",
    "TrackSection",
    "TrainConfig",
    "TrainSection",
    "TransformSection",
    "TuneConfig",
    "TuneSection",
    "VerbConfig",
]
