"""float32 or bfloat16: measured where the work is done, because the answer differs between processors."""

import contextlib
import time

import torch
from torch import nn

GAIN = 1.2  # bfloat16 must be this much faster to be worth its rounding


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context to run a forward pass in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def choose_precision(model: nn.Module, *, size_px: int, device: torch.device, batch_size: int = 16) -> str:
    """Time three forward passes of either kind; return ``float32`` or ``bfloat16``. A second or so on a CPU."""
    images = torch.rand(batch_size, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()
    seconds = {name: _best_time(model, images, name) for name in ("float32", "bfloat16")}
    model.train(was_training)
    return "bfloat16" if seconds["float32"] > GAIN * seconds["bfloat16"] else "float32"


@torch.inference_mode()
def _best_time(model: nn.Module, images: torch.Tensor, precision: str) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        with autocast(images.device, precision):
            model(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
