"""``nightly``: check, plan and score a catalog, for the scheduler.

Each step leaves its run directories in a folder of its own below ``out``. The exit code is that of the step that
stopped the run, else that of scoring.
"""

from retailray import storage
from retailray.config import CheckConfig, NightlyConfig, ScoreConfig
from retailray.quality.check import check
from retailray.scoring.score import score


def nightly(config: NightlyConfig) -> str:
    """Check the catalog where a setting of ``check`` is given, print the plan, then score.

    Returns:
        The address of the scoring run's directory.

    Raises:
        GateFailed: a finding that ``check.fail_on`` names was made, and nothing was scored; or ``score.max_drift``.
        TooManyRowErrors: scored and published, but more rows failed than ``score.max_error_rate``.
        RetailrayError: see :mod:`retailray.errors`.
    """
    catalog, cluster = config.catalog, config.cluster
    if config.check.non_default_fields():  # it reads every image, so it runs only on request
        out = storage.join(config.out, "checks")
        check(CheckConfig(catalog=catalog, cluster=cluster, split=config.split, check=config.check, out=out))
    out = storage.join(config.out, "scores")
    scoring = ScoreConfig(catalog=catalog, cluster=cluster, model=config.model, score=config.score, out=out)
    plan = scoring.score.model_copy(update={"plan_only": True})
    score(scoring.model_copy(update={"score": plan}))  # a line for the log, before any machine is asked for
    return score(scoring)
