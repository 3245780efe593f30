"""How long OpenMP's threads spin before they give their core away: one process alone, and two on the same cores.

    python -m benchmarks.spinning [--repeats 3]

A training step and a forward pass of mobilenet_v2, 32 images of 224 px, as many threads as cores; seconds, medians.
"""

import argparse
import os
import statistics
import subprocess
import sys

from benchmarks.shop import table

COUNTS = (1_000, 3_000, 10_000, 300_000)  # the last one is GNU OpenMP's default
WORK = """
import os, time, torch
from retailray.execution.process import prepare_process
from retailray.models.backbones import build_model

prepare_process(os.cpu_count())
model = build_model("mobilenet_v2", 81, image_size=224).to(memory_format=torch.channels_last).train()
images = torch.rand(32, 3, 224, 224).to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters())

def step():
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()

@torch.inference_mode()
def infer():
    model(images)

def seconds(what, times):
    what()
    started = time.perf_counter()
    for _ in range(times):
        what()
    return (time.perf_counter() - started) / times

train = seconds(step, 4)
model.eval()
print(train, seconds(infer, 6))
"""


def measure(count: int, processes: int) -> tuple[float, float]:
    """Seconds of a step and of a pass, of the slowest process."""
    environment = os.environ | {"GOMP_SPINCOUNT": str(count)}
    command = [sys.executable, "-c", WORK]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = [tuple(map(float, process.communicate()[0].split())) for process in started]
    return max(step for step, _ in found), max(passed for _, passed in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for _ in range(arguments.repeats):
        for count in COUNTS:
            for processes in (1, 2):
                found.setdefault((count, processes), []).append(measure(count, processes))
    rows = [
        {
            "GOMP_SPINCOUNT": count,
            "processes": processes,
            "training step, s": statistics.median(step for step, _ in times),
            "forward pass, s": statistics.median(passed for _, passed in times),
        }
        for (count, processes), times in found.items()
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
