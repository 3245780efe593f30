"""Workers that train together train what one trains alone: real processes, real gradients, without Ray.

On Ray: :mod:`tests.commands.test_fine_tuning`.
"""

import multiprocessing

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed

from retailray.config import TrainSection
from retailray.execution.distributed import DistributedContext
from retailray.models.backbones import backbone_of, build_model
from retailray.models.intervals import Intervals
from retailray.training.batches import Batching, CachedDataset, StoredBatches, make_batching
from retailray.training.cache import store
from retailray.training.cache.store import CacheSpec
from retailray.training.loop import TrainingLoop
from retailray.training.network import Network, NetworkSpec
from retailray.training.numbers import TrueValues
from retailray.training.phases import ResolvedPhase
from retailray.training.validation import validate

SIZE, CLASSES = 16, 3
TRAIN_ROWS, VALIDATION_ROWS = 41, 17  # of no multiple of workers or batches
NETWORK = NetworkSpec(backbone_of("cnn1"), CLASSES, SIZE, None, (0.5,) * 3, (0.2,) * 3, "float32")
# of labels that are numbers: each class is the range of some, and every row has one of its own
NUMBERS = TrueValues(Intervals(lows=(0, 10, 20), highs=(5, 15, 20)), np.arange(50), np.arange(50) % 3 * 10.0 + 1, 10, 1)
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["retailray.training.loop"])  # torch is imported once for all workers


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Pixels whose brightness tells the class, kept as training keeps them."""
    made = {}
    for name, num_rows in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS)):
        targets = np.arange(num_rows) % CLASSES
        noise = np.random.default_rng(num_rows).integers(0, 60, (num_rows, 3, SIZE, SIZE))
        spec = CacheSpec(str(tmp_path_factory.mktemp(name)), name, num_rows, 1, (3, SIZE, SIZE), "uint8")
        store.create(spec)
        store.write_rows(spec, np.arange(num_rows), (noise + 60 * targets[:, None, None, None]).astype(np.uint8))
        store.finish(spec, pa.table({"error_code": [""] * num_rows, "message": [""] * num_rows}))
        made[name] = CachedDataset(spec, np.arange(num_rows), targets, np.arange(num_rows), 10**9)
    return made


def train(stores, batch_size, settings, rank=0, world=1):
    """Four epochs: the numbers of every epoch, and the weights of the best epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    context = DistributedContext(rank, world)
    network = Network(build_model("cnn1", CLASSES, image_size=SIZE), NETWORK, context)

    def open_batches(name, phase):
        return StoredBatches(stores[name], make_batching(name, section, context, min_rows=1), None), 0

    section = TrainSection(batch_size=batch_size, **settings)
    phases = [ResolvedPhase(4, "all", 0, 0, 1e-2, 1e-2)]
    told = {"class_weights": torch.tensor([0.5, 1.0, 2.0])} if section.metric != "mae" else {"known": NUMBERS}
    loop = TrainingLoop(network, phases=phases, train=section, open_batches=open_batches, **told)
    for _ in loop.epochs(None):
        pass
    rows = loop.validator.outputs("validation")[0]
    other = ("seconds", "train_seconds", "data_wait_seconds", "trainable", "precision")
    history = [{name: value for name, value in row.items() if name not in other} for row in loop.progress.history]
    return history, {name: value.numpy() for name, value in loop.best.items()}, len(rows)


def train_batch_norm(stores, rank, world):
    """Two epochs of a network with BatchNorm: the best validation loss, and what its weights give on all rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    context = DistributedContext(rank, world)
    network = Network(build_model("resnet18", CLASSES), NETWORK, context)

    def open_batches(name, phase):
        return StoredBatches(stores[name], make_batching(name, section, context, min_rows=8), None), 0

    phases = [ResolvedPhase(2, "all", 0, 0, 1e-3, 1e-3, trains_batch_norm=True)]
    section = TrainSection(batch_size=20, metric="loss")
    loop = TrainingLoop(network, phases=phases, train=section, open_batches=open_batches)
    list(loop.epochs(None))
    told = loop.progress.history[loop.progress.best_epoch - 1]["validation_loss"]
    return told, loop.best


def batch_norm_of_many(folder, answers, rank, world, stores):
    group = f"file://{folder}/group"
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=world)
    told, best = train_batch_norm(stores, rank, world)
    if rank == 0:
        answers.put((told, {name: value.numpy() for name, value in best.items()}))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # processes of its own
def test_all_workers_validate_with_the_statistics_that_are_saved(stores, tmp_path):
    """Kind of fault: each worker measures its rows with BatchNorm's statistics of its own part of the batches."""
    answers = processes.Queue()
    workers = [
        processes.Process(target=batch_norm_of_many, args=(tmp_path, answers, rank, 2, stores)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    told, best = answers.get(timeout=120)
    for worker in workers:
        worker.join(60)
    model = build_model("resnet18", CLASSES)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in best.items()})
    network = Network(model.eval(), NETWORK, DistributedContext())
    batches = StoredBatches(stores["validation"], Batching(20, 0), None)
    assert validate(network, batches, 0)["validation_loss"] == pytest.approx(told, rel=1e-4)


def one_of_many(folder, answers, rank, world, arguments):
    group = f"file://{folder}/group"
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=world)
    found = train(*arguments, rank, world)
    if rank == 0:
        answers.put(found)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "batch_size", "settings"),
    [
        (2, 14, {}),
        (3, 14, {"optimizer": "sgd", "ema_decay": 0.5}),
        (3, 4, {}),
        (2, 1000, {"metric": "loss", "label_smoothing": 0.1}),
        (5, 23, {"clip_grad_norm": 0.1}),
        (2, 14, {"device_batch_size": 3}),
        (3, 14, {"metric": "mae"}),
    ],
)
@pytest.mark.slow  # a process of its own
def test_more_workers_train_alike(world, batch_size, settings, stores, tmp_path):
    """Kind of fault: a row is dropped, repeated or weighs another share because there are several workers.

    Or several passes: the measure is one worker that takes every batch in one.
    """
    answers = processes.Queue()
    arguments = (stores, batch_size, settings)
    workers = [
        processes.Process(target=one_of_many, args=(tmp_path, answers, rank, world, arguments)) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    history, weights, num_rows = answers.get(timeout=120)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    whole = {name: value for name, value in settings.items() if name != "device_batch_size"}
    alone, expected, _ = train(stores, batch_size, whole)
    assert num_rows == VALIDATION_ROWS
    assert [row["train_rows"] for row in history] == [TRAIN_ROWS] * 4
    for mine, theirs in zip(history, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-3, err_msg=name)
