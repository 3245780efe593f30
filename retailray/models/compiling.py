"""A forward pass that torch's inductor compiles for this machine, where that saves more time than it takes.

What both passes took is kept once per machine, model, number format, batch size, compiler and version of torch, as the
format is (:mod:`retailray.models.precision`).
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
import numpy as np

from retailray import storage
from retailray.interrupts import importing
from retailray.models.precision import remembered

if TYPE_CHECKING:
    from retailray.models.predictor import Predictor

ROUNDS = 3
PATIENCE_S = 60.0  # of those that wait for the one that compiles
FEW = 8  # rows that tell about how long all images take
CLOSE = 0.02  # of probabilities; rounding to bfloat16 between the layers, or not, makes less
GUESSED_GAIN, GUESSED_COST_S = 0.15, 10.0  # before anything was measured here


class Decision(NamedTuple):
    compiled: bool
    why: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of an image in either pass, and of compiling.

    ``failed``: why it cannot be done here, or ''; ``differs``: because the results are others.
    """

    eager_s: float = 0.0
    compiled_s: float = 0.0
    cost_s: float = 0.0
    failed: str = ""
    differs: bool = False

    def decide(self, num_images: int) -> Decision:
        if self.failed:
            return Decision(False, self.failed)
        saved = num_images * (self.eager_s - self.compiled_s)
        rates = f"{1 / self.eager_s:,.0f} images/s as it is, {1 / self.compiled_s:,.0f} compiled"
        if saved > self.cost_s:
            return Decision(True, f"{rates}: compiling saves {saved:.0f} s of {num_images:,} images")
        cost = f"compiling takes {self.cost_s:.0f} s and saves {max(0.0, saved):.0f} s of {num_images:,} images"
        return Decision(False, f"{rates}: {cost}")


def compile_if_it_pays(predictor: "Predictor", mode: str, *, num_images: int, batch_size: int) -> Decision:
    """Compile a predictor's forward pass where ``mode`` is on, or auto and it saves time.

    Args:
        num_images: that this predictor will see. batch_size: of its batches.
    """
    rows = predictor.rows_at_once or batch_size
    if predictor.precision == "int8":
        return Decision(False, "a network in 8-bit integers runs in OpenVINO")
    if mode == "off":
        predictor.compiled = None
        return Decision(False, "score.compile is off")
    if mode == "auto" and predictor.device.type != "cpu":
        return Decision(False, "on a GPU it is compiled only with score.compile on")
    if mode == "on" and predictor.compiled:
        return Decision(True, "it is compiled")
    what = f"{predictor.what}, {predictor.precision}, {rows}, {_compiler()}"
    known = remembered("compiled", what, predictor.size_px, predictor.device)
    measured = _read(known)
    if mode == "auto" and measured:
        decision = measured.decide(num_images)
        if not decision.compiled:
            return decision
    images = np.random.default_rng(0).integers(0, 255, (rows, 3, predictor.size_px, predictor.size_px), np.uint8)
    if mode == "auto" and not measured:
        predictor.logits(images[:2])  # warms up
        passes_s = _seconds(predictor, images[:FEW], rounds=1) * num_images
        if passes_s * GUESSED_GAIN < GUESSED_COST_S:
            return Decision(False, f"too few to try it: all {num_images:,} images take {passes_s:.0f} s as it is")
    with contextlib.nullcontext() if measured else one_at_a_time():  # others read then what the first one has compiled
        measured = _compile(predictor, images, _read(known))
        if not measured.differs:  # which is a matter of the weights; another version may agree
            _write(known, measured)
    if mode == "on" and not measured.failed:
        return Decision(True, "score.compile is on")
    decision = measured.decide(num_images)
    if not decision.compiled and (measured.failed or measured.compiled_s > measured.eager_s):
        predictor.compiled = None
        return decision
    return Decision(True, decision.why)  # the cost is paid


def _compile(predictor: "Predictor", images: np.ndarray, earlier: Measured | None) -> Measured:
    """Compile, compare with the pass as it is, and measure both, if nobody has."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU is no news
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(storage.cache_folder(), "inductor")))
    expected = predictor(images)
    if earlier and earlier.failed:
        earlier = None
    eager_s = earlier.eager_s if earlier else _seconds(predictor, images)
    started = time.perf_counter()
    try:
        with importing():
            predictor.compile(len(images))
            found = predictor(images)
    except Exception as error:  # no compiler, a network that cannot be followed: whatever torch raises
        predictor.compiled = None
        return Measured(failed=f"it cannot be compiled here: {_first_line(error)}")
    cost_s = time.perf_counter() - started
    if not np.abs(found - expected).max() < CLOSE:
        predictor.compiled = None
        why = f"compiled, its probabilities differ by {np.abs(found - expected).max():.3f}"
        return Measured(failed=why, differs=True)
    return earlier or Measured(eager_s, _seconds(predictor, images), cost_s)


def _compiler() -> tuple[str, float]:
    """Where the C++ compiler is that torch will call, and of when; ('', 0) where there is none."""
    found = shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))
    return (found, Path(found).stat().st_mtime) if found else ("", 0.0)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Among the processes of this machine, as long as one has patience."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of time, or of a home that cannot be written: all compile at once
            Path(storage.cache_folder()).mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(Path(storage.cache_folder(), "compiling.lock"), PATIENCE_S))
        yield


def _seconds(predictor: "Predictor", images: np.ndarray, *, rounds: int = ROUNDS) -> float:
    """Of an image."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        predictor.outputs(images)
        found.append(time.perf_counter() - started)
    return min(found) / len(images)


def _read(path: Path) -> Measured | None:
    try:
        return Measured(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, measured: Measured) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(measured)))
    except OSError:
        return  # a home that cannot be written costs the measurement again


def _first_line(error: Exception) -> str:
    """What torch says first; after it come its own stack and advice for its developers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
