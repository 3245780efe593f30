"""One trial: an epoch a step, on what is kept. Its record and its state lie where a later try finds them."""

import copy
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from retailray import storage
from retailray.config import TrainConfig
from retailray.execution.distributed import DistributedContext
from retailray.execution.peers import Peers, device_of
from retailray.execution.state import write_state
from retailray.training.batches import Augmentation, StoredBatches, make_batching
from retailray.training.best_epoch import Epoch, score_of
from retailray.training.loop import State, TrainingLoop, saved_state
from retailray.training.network import Network, NetworkSpec
from retailray.training.phases import ResolvedPhase, min_rows, resolve
from retailray.training.prepared import augmentation
from retailray.tuning.shared_inputs import Shared, variant_key

RECORD, MEMBER = "record.json", "member.json"


class Trial:
    """One trial; an epoch is a pure function of the settings, its number and the state before it.

    A finished trial replays its recorded epochs instead of training them; an unfinished one continues from its state.
    ``member``: its name in population based training, where settings change during a trial. A member replays nothing;
    it reports its own history after that of the trial it was copied from.
    """

    def __init__(self, shared: Shared, drawn: dict[str, object], *, member: str | None = None) -> None:
        self.shared, self.drawn, self.member = shared, drawn, member
        self.config = shared.trial(drawn)
        self.key = member or trial_key(shared, drawn)
        self.folder = storage.join(shared.records, self.key)
        self.record = None if member else read_json(storage.join(self.folder, RECORD))
        self.start = None if self.record else saved_state(self.folder)
        self.loop: TrainingLoop | None = None
        self.peers: Peers | None = None
        self.told: deque[Epoch] = deque(self.record["history"] if self.record else [])
        self.rows: list[Epoch] = []
        self.saved_at = time.monotonic()
        if member:  # for a resumed search, which begins with the settings that members had come to
            storage.write_bytes(storage.join(self.folder, MEMBER), json.dumps(drawn).encode())
        if self.start:
            self._take_up(self.start)

    def _take_up(self, state: State) -> None:
        """What there is to tell of a state: all of it again, or by a member only its end, where it is over."""
        history = list(state["progress"]["history"])
        if not self.member:
            self.told = deque(history)
        else:
            self.rows = history
            self.told = deque(history[-1:] if state["over"] else [])

    def step(self) -> dict[str, object]:
        """The next epoch: its measures, the best ``score`` so far (more is better), and whether it was the last."""
        if self.told:
            row = self.told.popleft()
            over = not self.told and bool(self.record or (self.start and self.start["over"]))
        else:
            row = next(self._epochs())
            assert self.loop
            over = self.loop.is_over
            if over or time.monotonic() - self.saved_at >= self.config.train.checkpoint_interval_s:
                self.save()
        if not self.rows or self.rows[-1]["epoch"] < row["epoch"]:
            self.rows.append(row)
        finished = over and (not self.record or self.record["finished"])
        if finished and not self.record and not self.member:
            write_record(self.folder, drawn=self.drawn, finished=True, history=self.rows)
        return {
            "epoch": row["epoch"],
            "score": max(score_of(row, self.config.train.metric) for row in self.rows),
            "rows": self.rows if self.member else [row],
            "key": self.key,
            "finished": finished,
            "recorded": self.record is not None,
            "done": over,
        }

    def _epochs(self) -> Iterator[Epoch]:
        """The running epochs; a model is built only where something is left to run."""
        if self.loop is None:
            if self.shared.plan.num_workers > 1:
                work = functools.partial(_run_rank, self.shared, self.drawn, self.start)
                self.peers = Peers(work, self.shared.plan)
            world = self.peers.join() if self.peers else DistributedContext(0, 1, device_of(self.shared.plan))
            self.loop = make_loop(self.shared, self.config, world)
            self.running = self.loop.epochs(self.start)
        return self.running

    def state(self) -> State | None:
        """What :meth:`load` continues from: the training loop's state, and whether it is over."""
        if not self.loop:  # nothing has run since it was loaded, if it was
            return self.start
        return self.loop.state() | {"over": self.loop.is_over}

    def load(self, state: State | None) -> None:
        """Continue from another trial's state with one's own settings."""
        self.leave()
        self.start, self.loop, self.told, self.rows = state, None, deque(), []
        if state:
            self._take_up(state)

    def leave(self) -> None:
        """End the other ranks. Who ended the trial, and what for, is not known here: nothing is written."""
        if self.peers:
            self.peers.leave()
            self.peers = None

    def save(self) -> None:
        write_state(self.folder, self.state())
        self.saved_at = time.monotonic()


def _run_rank(shared: Shared, drawn: dict[str, object], start: State | None, world: DistributedContext) -> None:
    """The epochs of a trial on another rank's rows, until rank 0 ends it."""
    for _ in make_loop(shared, shared.trial(drawn), world).epochs(start):
        pass


def write_record(folder: str, *, drawn: dict[str, object], finished: bool, history: list[Epoch]) -> None:
    """From here on a trial has ended; ``finished``: by itself."""
    record = {"drawn": drawn, "finished": finished, "at": time.time(), "history": history}
    storage.write_bytes(storage.join(folder, RECORD), json.dumps(record).encode())


def trial_key(shared: Shared, drawn: dict[str, object]) -> str:
    """A digest of what of the drawn settings means something: equal trials are one trial."""
    values = shared.config.effective(drawn)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def make_loop(shared: Shared, config: TrainConfig, world: DistributedContext) -> TrainingLoop:
    """The loop of one trial over kept rows; this process keeps one pristine model a network."""
    variant = shared.variants[variant_key(config)]
    network_spec = variant.network_spec
    network = Network(copy.deepcopy(_pristine(network_spec)), network_spec, world, threads=shared.plan.torch_threads)
    plain = Augmentation("none", 0.0, config.transform.image_size, config.transform.image_size)

    def open_batches(name: str, phase: ResolvedPhase) -> tuple[StoredBatches, int]:
        source, num_cached_blocks = shared.source(variant, name, phase)
        mine = augmentation(config) if name == "train" else plain
        batching = make_batching(name, config.train, world, min_rows=min_rows(phases))
        batches = StoredBatches(source, batching, mine if num_cached_blocks == 0 else None)
        return batches, num_cached_blocks

    phases = resolve(config, network.chain)
    return TrainingLoop(
        network,
        phases=phases,
        train=config.train,
        open_batches=open_batches,
        class_weights=torch.tensor(shared.class_weights) if config.train.class_weights == "balanced" else None,
    )


@functools.lru_cache(maxsize=4)
def _pristine(network_spec: NetworkSpec) -> nn.Module:
    return network_spec.build()


def read_json(address: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(address)) if storage.exists(address) else None
