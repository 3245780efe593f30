"""float32 or bfloat16: measured where the work is done, because the answer differs between processors."""

import contextlib
import time

import torch
from torch import nn

ROUNDS = 4
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


def choose_precision(model: nn.Module, *, size_px: int, device: torch.device, batch_size: int = 16) -> str:
    """Time forward passes of either kind in turns; return ``float32`` or ``bfloat16``. A second or so on a CPU."""
    images = torch.rand(batch_size, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(ROUNDS):  # in turns, so that a neighbour's load falls on both
        for name, measured in times.items():
            measured.append(_time(model, images, name))
    seconds = {name: min(measured[1:]) for name, measured in times.items()}  # the first one warms up
    model.train(was_training)
    return "bfloat16" if seconds["float32"] > GAIN * seconds["bfloat16"] else "float32"


@torch.inference_mode()
def _time(model: nn.Module, images: torch.Tensor, precision: str) -> float:
    started = time.perf_counter()
    with autocast(images.device, precision):
        model(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
