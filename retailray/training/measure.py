"""What this machine does in which time: the ground for choosing a precision and for keeping activations."""

import dataclasses
import time

import torch

from retailray.execution.process import prepare_process
from retailray.models.backbones import Backbone, described
from retailray.models.precision import autocast, choose_precision, under_autocast

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Measurement:
    """``seconds`` and ``shapes`` by number of frozen blocks: of one image through them, and of what comes out."""

    precision: str
    seconds: dict[int, float]
    shapes: dict[int, tuple[int, ...]]


def measure(
    backbone: Backbone, num_classes: int, *, size_px: int, cuts: list[int], precision: str, use_gpu: bool, threads: int
) -> Measurement:
    """Run untrained blocks on noise, for a second or two: time does not depend on the weights."""
    prepare_process(threads)
    device = torch.device("cuda" if use_gpu else "cpu")
    model = backbone.build(num_classes, image_size=size_px).to(device).to(memory_format=torch.channels_last).eval()
    if precision == "auto":
        passes = under_autocast(model, device)
        precision = choose_precision(passes, what=f"{described(backbone)}, training", size_px=size_px, device=device)
    chain = backbone.blocks(model)
    seconds: dict[int, float] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    images = torch.rand(BATCH, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last)
    for cut in cuts:
        part = chain.run(0, cut)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            with torch.inference_mode(), autocast(device, precision):
                shapes[cut] = tuple(part(images).shape[1:])
            if use_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds[cut] = min(times) / BATCH
    return Measurement(precision, seconds, shapes)
