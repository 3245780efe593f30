"""The best trial of a search: found, made a model again, and measured on the images themselves."""

import dataclasses

import torch
import yaml

from retailray import events, storage
from retailray.config import BundleSection, EvaluateConfig, EvaluateSection
from retailray.data.catalog import Catalog
from retailray.data.taxonomy import taxonomy_of
from retailray.errors import RetailrayError
from retailray.evaluation.evaluate import evaluate
from retailray.execution import Executor
from retailray.execution.distributed import DistributedContext
from retailray.execution.peers import device_of
from retailray.execution.process import prepare_process
from retailray.models.calibration import Calibration
from retailray.models.meta import EPOCH
from retailray.runs import RunDirectory
from retailray.training.best_epoch import Epoch
from retailray.training.bundles import TrainedModel
from retailray.training.loop import saved_state
from retailray.tuning.shared_inputs import Shared, variant_key
from retailray.tuning.trial import make_loop
from retailray.tuning.trials_table import Row, TrialsTable

MAX_DIFFERENCE = 0.02  # of top-1 with and without the cache: bfloat16 rounds, and a row or two may change
SAME_ROWS = 2


@dataclasses.dataclass(frozen=True)
class Winner:
    """The best trial. ``verified``: what :func:`verify` measured."""

    row: Row
    model: TrainedModel
    verified: dict[str, object]


def find_winner(ledger: TrialsTable) -> Row:
    """The best trial. Raises RetailrayError where no trial ended well."""
    for row in ledger.ranked():
        return row
    messages = [row.message for row in ledger.rows.values() if row.message]
    why = f"the first failure: {messages[0]}" if messages else "all diverged; search lower learning rates"
    raise RetailrayError(f"none of {len(ledger.rows)} trials finished; {why}")


def _restored(shared: Shared, winner: Row, executor: Executor) -> tuple[dict[str, torch.Tensor], Calibration, Epoch]:
    """The winner's whole state dict as of its best epoch, its calibration and that epoch: computed where trials run.

    Epochs that its state does not have (a budget ended it, or its state is gone) are run again.
    """

    def restore(shared: Shared) -> tuple[dict[str, torch.Tensor], Calibration, Epoch]:
        prepare_process(shared.plan.torch_threads)
        state = saved_state(storage.join(shared.records, winner.key)) if winner.key else None
        loop = make_loop(shared, shared.trial(winner.drawn), DistributedContext(0, 1, device_of(shared.plan)))
        known = len(state["progress"]["history"]) if state else 0
        if state and known >= winner.epochs:
            loop.load_progress(state)
        else:
            running = loop.epochs(state)
            for _ in range(winner.epochs - known):
                next(running)
            loop.load_progress(loop.state())
        best = loop.progress.history[loop.progress.best_epoch - 1]
        calibration = loop.validator.calibration(shared.rows)
        assert calibration, "this is rank 0"
        return (
            {name: tensor.cpu().clone() for name, tensor in loop.network.model.state_dict().items()},
            calibration,
            best,
        )

    return executor.call(restore, shared, cpus=shared.plan.cpus, gpus=shared.plan.gpus)


def trained_winner(
    shared: Shared, winner: Row, splits: dict[str, Catalog], run: RunDirectory, executor: Executor
) -> TrainedModel:
    """The winner as of its best epoch; and ``best.yaml``, by which ``train --config`` trains it again."""
    weights, calibration, best = _restored(shared, winner, executor)
    settings = shared.trial(winner.drawn)
    variant = shared.variants[variant_key(settings)]
    if variant.prepared.plan.cuts:  # else pixels were augmented anew in every epoch
        settings = shared.config.trial(
            winner.drawn,
            **{"train.precision": variant.network_spec.precision, "train.num_views": variant.prepared.plan.views},
        )
    run.write("best.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    spec = variant.network_spec
    taxonomy = taxonomy_of(settings.taxonomy.uri, splits.values(), shared.labels)
    known = (settings, shared.labels, spec.backbone, spec.mean, spec.std, splits, weights, calibration, best)
    return TrainedModel(*known, taxonomy=taxonomy)


def verify(trained: TrainedModel, run: RunDirectory, bundle: str, engine: str) -> dict[str, object]:
    """Evaluate the bundle on the validation images themselves, as anyone would who has nothing of what is cached.

    ``engine``: where the images are read.

    Raises:
        RetailrayError: the measures differ from what the winner says of all validation rows, read from caches, or
            these from what its trial had measured on those of them that choose the epoch.
    """
    config, calibration, best_top1 = trained.config, trained.calibration, trained.best["validation_top1"]
    right = calibration.predicted == calibration.targets
    expected, chose = float(right.mean()), right[calibration.roles == EPOCH]
    if abs(chose.mean() - best_top1) > max(MAX_DIFFERENCE, SAME_ROWS / len(chose)):
        raise RetailrayError(
            f"the winner's top-1 is {chose.mean():.4f} on the rows that chose its epoch, and its trial had measured "
            f"{best_top1:.4f}; please report this ({bundle})"
        )
    with events.nested_run():
        metrics = evaluate(
            EvaluateConfig(
                catalog=config.catalog,
                split=config.split,
                model=BundleSection(uri=bundle),
                evaluate=EvaluateSection(split="validation"),
                cluster=config.cluster.model_copy(update={"engine": engine}),
                out=run.path("verification"),
            )
        )
    if abs(metrics["top1"] - expected) > max(MAX_DIFFERENCE, SAME_ROWS / max(1, metrics["num_rows"])):
        raise RetailrayError(
            f"the winner's top-1 is {metrics['top1']:.4f} on the validation images, and its trial had measured "
            f"{expected:.4f} from the cache; please report this ({bundle})"
        )
    return {name: metrics[name] for name in ("top1", "top5", "macro_f1", "ece", "num_rows")} | {"trial_top1": expected}
