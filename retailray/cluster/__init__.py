"""Start or find Ray, and plan what runs where before anything starts."""

from retailray.cluster.capacity import (
    Capacity,
    Plan,
    TrialPlan,
    plan_reading,
    plan_scoring,
    plan_training,
    plan_trials,
    wait_until_free,
)
from retailray.cluster.metrics import metric
from retailray.cluster.relay import beside_driver, relay_progress
from retailray.cluster.session import names_dashboard, prepare_environment, ray_session, why

__all__ = [
    "Capacity",
    "Plan",
    "TrialPlan",
    "beside_driver",
    "metric",
    "names_dashboard",
    "plan_reading",
    "plan_scoring",
    "plan_training",
    "plan_trials",
    "prepare_environment",
    "ray_session",
    "relay_progress",
    "wait_until_free",
    "why",
]
