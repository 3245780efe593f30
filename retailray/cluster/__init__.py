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
from retailray.cluster.relay import relay_progress
from retailray.cluster.session import prepare_environment, ray_session

__all__ = [
    "Capacity",
    "Plan",
    "TrialPlan",
    "plan_reading",
    "plan_scoring",
    "plan_training",
    "plan_trials",
    "prepare_environment",
    "ray_session",
    "relay_progress",
    "wait_until_free",
]
