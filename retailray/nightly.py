"""``nightly``: check, plan and score a catalog, for the scheduler.

Each step leaves its run directories in a folder of its own below ``out``. The exit code is that of the step that
stopped the run, else that of scoring.
"""

from retailray import events, storage
from retailray.config import CheckConfig, NightlyConfig, ScoreConfig
from retailray.quality.check import check
from retailray.scoring.score import score

# what scoring does not read of a catalog, the columns and files of splits, need not exist for it
NOT_SCORED = {key.removeprefix("catalog."): None for key in ScoreConfig.unused if key.startswith("catalog.")}


def nightly(config: NightlyConfig) -> str:
    """Check the catalog if that is asked for (``nightly.check``, or any setting of ``check``), print the plan, score.

    Returns:
        The address of the scoring run's directory.

    Raises:
        GateFailed: a finding that ``check.fail_on`` names was made, and nothing was scored; or ``score.max_drift``.
        TooManyRowErrors: scored and published, but more rows failed than ``score.max_error_rate``.
        RetailrayError: see :mod:`retailray.errors`.
    """
    catalog, cluster = config.catalog, config.cluster
    if config.checks:
        out = storage.join(config.out, "checks")
        section = config.check
        if section.label_errors and not section.model:
            section = section.model_copy(update={"model": config.model.uri})
        with events.nested_run():
            check(CheckConfig(catalog=catalog, cluster=cluster, split=config.split, check=section, out=out))
    catalog, out = catalog.model_copy(update=NOT_SCORED), storage.join(config.out, "scores")
    scoring = ScoreConfig(
        catalog=catalog, cluster=cluster, model=config.model, taxonomy=config.taxonomy, score=config.score, out=out
    )
    plan = scoring.score.model_copy(update={"plan_only": True})
    score(scoring.model_copy(update={"score": plan}))  # a line for the log, before any machine is asked for
    return score(scoring)
