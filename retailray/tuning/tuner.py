"""Ray Tune's part: what draws settings, what stops trials, and the process that runs one trial after another."""

import contextlib
import functools
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from retailray import storage
from retailray.config import Domain, TuneConfig
from retailray.errors import ConfigError
from retailray.execution.process import prepare_process
from retailray.execution.state import write_state
from retailray.training.loop import saved_state
from retailray.tuning.shared_inputs import Shared
from retailray.tuning.trial import Trial
from retailray.tuning.trials_table import TrialsTable

# what a trial may change on the way without becoming another model or reading other rows
MUTABLE = {
    f"train.{name}"
    for name in ("head_lr", "backbone_lr", "layer_decay", "weight_decay", "clip_grad_norm", "label_smoothing", "mixup")
}


# our records take the place of Tune's loggers and of its own state, which a resumed search would have to trust; Ctrl-C
# means what it means everywhere
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


KEPT = 4  # checkpoints a member: fewer may be gone before another one takes them over


class SearchTrial(tune.Trainable):
    """A process that runs one trial after another: imports, weights and memory maps are there for the next one."""

    def setup(self, config: dict[str, object], shared: Shared) -> None:  # type: ignore[override]
        self.shared, self.next = shared, config
        self.one: Trial | None = None

    def reset_config(self, new_config: dict[str, object]) -> bool:
        self.cleanup()
        self.next = new_config
        return True

    def _trial(self) -> Trial:
        """Begun late: Tune tries again what fails in a step, and gives up what fails before."""
        if self.one is None:
            prepare_process(self.shared.plan.torch_threads)
            member = f"member-{self.trial_id.rpartition('_')[2]}" if self.shared.is_population else None
            self.one = Trial(self.shared, self.next, member=member)
        return self.one

    def step(self) -> dict[str, object]:
        return self._trial().step()

    def cleanup(self) -> None:
        if self.one:
            self.one.leave()
        self.one = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        write_state(checkpoint_dir, self._trial().state())

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        self._trial().load(saved_state(checkpoint))


def run_search(
    shared: Shared, ledger: TrialsTable, *, num_epochs: int, resumed: list[dict[str, object]], storage_path: str
) -> None:
    """Run all trials; ``ledger`` hears of every epoch.

    Args:
        num_epochs: of a trial that nothing stops.
        resumed: the settings drawn before the search was interrupted, in order, where its draws depend on results.
        storage_path: where checkpoints go that trials take over from each other.
    """
    # long because it is the one call of Tune, with all its options
    os.environ.update(ENVIRONMENT)
    config, plan = shared.config, shared.plan
    bundle = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
    trainable = tune.with_resources(
        tune.with_parameters(SearchTrial, shared=shared), tune.PlacementGroupFactory([bundle] * plan.num_workers)
    )
    population = shared.is_population
    with tempfile.TemporaryDirectory(prefix="retailray-tune-") as folder:
        filesystem, path = storage.arrow_filesystem(storage_path) if population else (None, folder)
        tuner = tune.Tuner(
            trainable,
            param_space={key: _domain(domain, config) for key, domain in config.space.items()},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=1 if config.tune.searcher == "grid" else config.tune.trials,
                max_concurrent_trials=plan.num_concurrent if config.tune.searcher == "optuna" else None,
                time_budget_s=config.tune.time_budget_s,
                search_alg=_searcher(config, resumed, plan.num_concurrent),
                scheduler=_scheduler(config, num_epochs),
                reuse_actors=plan.num_workers == 1,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=path,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[ledger],
                stop=_Budget(ledger, config.tune.max_epochs),
                failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=KEPT if population else None, checkpoint_at_end=False
                ),
            ),
        )
        # Tune copies credentials into runtime environments, which Ray logs; our processes have them already
        ENV_VARS_TO_PROPAGATE.difference_update(storage.WORKER_ENV)
        with _interrupts_noted(ledger):
            tuner.fit()
    ledger.end()


@contextlib.contextmanager
def _interrupts_noted(ledger: TrialsTable) -> Iterator[None]:
    """Ctrl-C is answered between two steps of Tune: an exception in the middle of one is lost now and then, in Ray's
    own callbacks. A second one is raised at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        if ledger.interrupted:
            raise KeyboardInterrupt
        ledger.interrupted = True

    handler = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class _Budget(tune.Stopper):
    """Ends the search when all trials together have had so many epochs."""

    def __init__(self, ledger: TrialsTable, max_epochs: int | None) -> None:
        self.ledger, self.max_epochs = ledger, max_epochs

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.max_epochs is not None and self.ledger.num_epochs >= self.max_epochs


def _domain(domain: Domain, config: TuneConfig) -> object:
    [(kind, values)] = domain.dump().items()
    if kind == "choice":
        return tune.grid_search(values) if config.tune.searcher == "grid" else tune.choice(values)
    if kind == "int":
        return tune.randint(values[0], values[1] + 1)
    return tune.uniform(*values) if kind == "uniform" else tune.loguniform(*values)


def _searcher(config: TuneConfig, resumed: list[dict[str, object]], num_concurrent: int) -> Searcher | SearchAlgorithm:
    points = resumed or None
    seed = config.tune.seed + len(resumed)  # the same seed would draw the same settings again
    if config.tune.searcher == "optuna":
        return OptunaSearch(seed=seed, points_to_evaluate=points)
    # Tune's own limit does not reach this one
    return BasicVariantGenerator(random_state=seed, points_to_evaluate=points, max_concurrent=num_concurrent)


def _scheduler(config: TuneConfig, num_epochs: int) -> TrialScheduler | None:
    tuned = config.tune
    if tuned.scheduler == "none":
        return None
    if tuned.scheduler == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=tuned.grace_epochs)
    if tuned.scheduler == "asha":
        grace = min(tuned.grace_epochs, num_epochs)
        return ASHAScheduler(time_attr="epoch", max_t=num_epochs, grace_period=grace, reduction_factor=tuned.reduction)
    changing = {key: domain.choice or _domain(domain, config) for key, domain in config.space.items() if key in MUTABLE}
    if not changing:
        some = ", ".join(sorted(MUTABLE))
        raise ConfigError(
            [f"tune.scheduler pbt changes settings during a trial, and tune.space contains none of those: {some}"]
        )
    random.seed(config.tune.seed)  # what Tune's population draws from
    np.random.seed(config.tune.seed)
    return PopulationBasedTraining(
        time_attr="epoch",
        perturbation_interval=tuned.grace_epochs,
        hyperparam_mutations=changing,
        custom_explore_fn=functools.partial(_within, {key: config.space[key] for key in changing}),
    )


def _within(space: dict[str, Domain], settings: dict[str, object]) -> dict[str, object]:
    """Back into the ranges that a population's members wander out of."""
    for key, domain in space.items():
        if domain.choice is None:
            low, high = domain.corners
            settings[key] = min(max(settings[key], low), high)
    return settings
