"""Where work runs: in this process or on Ray; what it may take there, and how it reports. See :mod:`.executor`."""

from retailray.execution.choice import executor_for_reading, start_executor
from retailray.execution.executor import Executor, FitOptions, Reference, Reporter, Shard, Stream, Worker
from retailray.execution.resources import (
    Capacity,
    Plan,
    TrialPlan,
    plan_reading,
    plan_scoring,
    plan_training,
    plan_trials,
)
from retailray.execution.session import names_dashboard, prepare_environment

__all__ = [
    "Capacity",
    "Executor",
    "FitOptions",
    "Plan",
    "Reference",
    "Reporter",
    "Shard",
    "Stream",
    "TrialPlan",
    "Worker",
    "executor_for_reading",
    "names_dashboard",
    "plan_reading",
    "plan_scoring",
    "plan_training",
    "plan_trials",
    "prepare_environment",
    "start_executor",
]
