"""One trial: an epoch a step, on what is kept. Its record and its state lie where a later try finds them."""

import copy
import functools
import hashlib
import io
import json
import time
from collections import deque
from typing import Any

import ray
import safetensors.torch
import torch
from torch import nn

from retailray import storage
from retailray.config import TrainConfig
from retailray.models.backbones import build_model, load_state
from retailray.models.blocks import split
from retailray.models.predictor import Normalize
from retailray.training.engine import Engine, World
from retailray.training.loop import LOADER_WORKERS
from retailray.training.prepare import augmentation
from retailray.training.recipe import resolve
from retailray.training.search.ranks import Ranks
from retailray.training.search.shared import Shared, variant_key
from retailray.training.sources import Augmentation, StoredBatches

RECORD, STATE = "record.json", "state.pt"
WORST = -1e9  # of a trial that diverged: below all that can be measured, and still a number for searchers


class Trial:
    """Its steps are pure functions of the settings and their number: what was recorded is told again, not run again.

    A record that is there ends the trial where it ended; without one the trial goes on from its state if that is there.
    ``member``: its name where settings change on the way (population-based training); nothing is told again then.
    """

    def __init__(self, shared: Shared, drawn: dict[str, Any], *, member: str | None = None) -> None:
        self.shared, self.drawn, self.member = shared, drawn, member
        self.config = shared.trial(drawn)
        self.key = member or trial_key(shared, drawn)
        self.folder = storage.join(shared.records, self.key)
        self.record = None if member else read_json(storage.join(self.folder, RECORD))
        self.start = None if self.record else read_state(self.folder)
        self.told: deque[dict[str, Any]] = deque(self.record["history"] if self.record else self._known())
        self.engine: Engine | None = None
        self.ranks: Ranks | None = None
        self.rows: list[dict[str, Any]] = []
        self.saved_at = time.monotonic()
        self.unsaved = False

    def _known(self) -> list[dict[str, Any]]:
        """The epochs of the state, to be told again: by a member only the last one, and only where none is left."""
        if not self.start:
            return []
        history = self.start["progress"]["history"]
        if not self.member:
            return history
        self.rows = history
        return history[-1:] if self.start["over"] else []

    def step(self) -> dict[str, Any]:
        """The next epoch: its measures, the best ``score`` so far (more is better), and whether it was the last."""
        if self.told:
            row = self.told.popleft()
            over = not self.told and bool(self.record or (self.start and self.start["over"]))
            finished = over and (not self.record or self.record["finished"])
        else:
            row = self._run_epoch()
            assert self.engine
            over = finished = self.engine.is_over
        if not self.rows or self.rows[-1]["epoch"] < row["epoch"]:
            self.rows.append(row)
        if self.unsaved and (over or time.monotonic() - self.saved_at >= self.config.train.checkpoint_s):
            self._save()
        if over and not self.record and not self.member:
            self._write_record(finished=True)
        return {
            **{name: value for name, value in row.items() if isinstance(value, int | float | str)},
            "score": max(score_of(row, self.config.train.metric) for row in self.rows),
            "train_seconds_total": sum(row["seconds"] for row in self.rows),
            "key": self.key,
            "finished": finished,
            "done": over,
        }

    def _run_epoch(self) -> dict[str, Any]:
        self.unsaved = False  # an epoch that fails leaves nothing: the next try begins where the last state was saved
        row = next(self._epochs())
        self.unsaved = True
        return row

    def _epochs(self) -> Any:
        """The running epochs; a model is built only where something is left to run."""
        if self.engine is None:
            if self.shared.plan.num_workers > 1:
                self.ranks = Ranks(self.shared, self.drawn, self.start)
            world = self.ranks.join(0) if self.ranks else World(0, 1, this_device(self.shared))
            self.engine = make_engine(self.shared, self.config, world)
            self.running = self.engine.epochs(self.start)
        return self.running

    def state(self) -> dict[str, Any]:
        """What :meth:`load` goes on from: the engine's state, and where it belongs."""
        assert self.engine
        return self.engine.state() | {"over": self.engine.is_over, "drawn": self.drawn}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from another trial's state with one's own settings."""
        self.leave()
        self.start, self.engine, self.told = state, None, deque()
        self.rows = list(state["progress"]["history"])

    def close(self) -> None:
        """End for now: whoever ended it, what it found stays."""
        if self.unsaved:
            self._save()
            if not self.record and not self.member:
                self._write_record(finished=False)
        self.leave()

    def leave(self) -> None:
        if self.ranks:
            self.ranks.leave()
            self.ranks = None

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        storage.write_bytes(storage.join(self.folder, STATE), buffer.getvalue())
        self.saved_at, self.unsaved = time.monotonic(), False

    def _write_record(self, *, finished: bool) -> None:
        self.record = {"drawn": self.drawn, "finished": finished, "at": time.time(), "history": self.rows}
        storage.write_bytes(storage.join(self.folder, RECORD), json.dumps(self.record).encode())


def trial_key(shared: Shared, drawn: dict[str, Any]) -> str:
    """A digest of what of the drawn settings means something: equal trials are one trial."""
    values = effective(shared.config.trial(drawn), drawn)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def effective(config: TrainConfig, drawn: dict[str, Any]) -> dict[str, Any]:
    """The drawn settings that a trial's config has kept; None for those that mean nothing beside the others."""
    found = {}
    for key, value in drawn.items():
        section, _, name = key.partition(".")
        kept = getattr(getattr(config, section), name)
        found[key] = value if kept == value else None
    return found


def score_of(row: dict[str, Any], metric: str) -> float:
    value = row[f"validation_{metric}"] * (-1 if metric == "loss" else 1)
    return value if value == value and abs(value) != float("inf") else WORST


def make_engine(shared: Shared, config: TrainConfig, world: World) -> Engine:
    """The engine of one trial over kept rows; this process keeps one pristine model a backbone."""
    variant = shared.variants[variant_key(config)]
    backbone = variant.backbone
    pristine = _pristine(backbone.arch, backbone.num_classes, backbone.image_size, _Reference(backbone.state_ref))
    model = copy.deepcopy(pristine)
    plain = Augmentation("none", 0.0, config.transform.image_size, config.transform.image_size)

    def open_batches(name: str, stage: Any) -> tuple[StoredBatches, int]:
        source, reads = shared.source(variant, name, stage)
        mine = augmentation(config) if name == "train" else plain
        batches = StoredBatches(
            source,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            rank=world.rank,
            world=world.size,
            augmentation=mine if reads == 0 else None,
        )
        return batches, reads

    return Engine(
        model,
        num_classes=backbone.num_classes,
        normalize=Normalize(backbone.mean, backbone.std),
        stages=resolve(config, split(model)),
        train=config.train,
        precision=backbone.precision,
        world=world,
        open_batches=open_batches,
        class_weights=torch.tensor(shared.class_weights) if config.train.balance else None,
        loader_workers=min(LOADER_WORKERS, shared.plan.torch_threads) if world.device.type == "cuda" else 0,
    )


def this_device(shared: Shared) -> torch.device:
    return torch.device("cuda" if shared.plan.gpus else "cpu")


class _Reference:
    """An object reference as part of a cache key: one object, one key."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reference) and self.reference == other.reference


@functools.lru_cache(maxsize=4)
def _pristine(arch: str, num_classes: int, image_size: int, state: _Reference) -> nn.Module:
    model = build_model(arch, num_classes, image_size=image_size)
    load_state(model, safetensors.torch.load(ray.get(state.reference)))
    return model


def read_json(address: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(address)) if storage.exists(address) else None


def read_state(folder: str) -> dict[str, Any] | None:
    """The state that a trial left in its folder, on the CPU."""
    address = storage.join(folder, STATE)
    if not storage.exists(address):
        return None
    return torch.load(io.BytesIO(storage.read_bytes(address)), map_location="cpu", weights_only=True)
