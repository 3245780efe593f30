"""float32 or bfloat16: measured where the work is done, because the answer differs between processors."""

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from retailray import storage

ROUNDS = 4
CLEARLY = (
    4  # times as slow in the first round, which warms up: processors without bfloat16 emulate it, twenty times as slow
)
GAIN = 1.2  # bfloat16 must be this much faster to be worth its rounding


class _Float32Conv2d(nn.Conv2d):
    """A convolution that is computed in float32 whatever the rest is computed in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def spare_slow_gradients(model: nn.Module, *, device: torch.device, precision: str) -> None:
    """Leave strided depthwise convolutions in float32 where a CPU trains in bfloat16.

    oneDNN's bfloat16 gradient of them takes some 40 times as long (118 ms against 3 ms for (64, 576, 14, 14)): the last
    five blocks of mobilenet_v2 train 1.6 times as fast without it.
    """
    if device.type != "cpu" or precision != "bfloat16":
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels > 1 and module.stride != (1, 1):
            module.__class__ = (
                _Float32Conv2d  # the same tensors and names, so state dicts and copies stay what they are
            )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context to run a forward pass in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


Pass = Callable[[torch.Tensor], object]


def under_autocast(model: nn.Module, device: torch.device) -> Callable[[str], Pass]:
    """Forward passes of a model in eval mode as training makes them, by precision."""

    def in_precision(precision: str) -> Pass:
        def forward(images: torch.Tensor) -> object:
            with autocast(device, precision):
                return model(images)

        return forward

    return in_precision


def choose_precision(
    passes: Callable[[str], Pass], *, what: str, size_px: int, device: torch.device, batch_size: int = 16
) -> str:
    """``float32`` or ``bfloat16``, by forward passes of either kind in turns; what was measured here is kept.

    ``what``: the name under which it is kept. A second or so on a CPU, the first time.
    """
    known = remembered("precision", what, size_px, device)
    with contextlib.suppress(OSError):
        if (found := known.read_text()) in ("float32", "bfloat16"):
            return found
    images = torch.rand(batch_size, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last)
    chosen = _faster({name: passes(name) for name in ("float32", "bfloat16")}, images)
    with contextlib.suppress(OSError):  # a home that cannot be written costs the second again
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(chosen)
    return chosen


def _faster(passes: dict[str, Pass], images: torch.Tensor) -> str:
    single, half = _seconds(passes, images[:2], rounds=2)
    if half > CLEARLY * single:
        return "float32"
    single, half = _seconds(passes, images, rounds=ROUNDS)
    return "bfloat16" if single > GAIN * half else "float32"


def _seconds(passes: dict[str, Pass], images: torch.Tensor, *, rounds: int) -> list[float]:
    """Of a pass in float32 and one in bfloat16."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):  # in turns, so that a neighbour's load falls on both
        for name, measured in seconds.items():
            measured.append(_time(passes[name], images, name))
    return [min(measured[1:]) for measured in seconds.values()]  # the first one warms up


def remembered(folder: str, what: str, size_px: int, device: torch.device) -> Path:
    """The file with what was measured of a model, for this kind of machine and this number of threads."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    facts = [torch.__version__, platform.processor(), platform.node(), kind, torch.get_num_threads(), what, size_px]
    return Path(storage.cache_folder(), folder, hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32])


@torch.inference_mode()
def _time(run: Pass, images: torch.Tensor, name: str) -> float:
    started = time.perf_counter()
    run(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
