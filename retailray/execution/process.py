"""How a process that runs torch uses its cores and its memory."""

import ctypes
import os
import sys

import torch

# of glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def prepare_process(threads: int) -> None:
    """Take ``threads`` threads (no more than there are cores), and keep freed memory for the next tensor."""
    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 where float32 is computed
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Serve tensors of up to 1 GB from one heap that is not given back to the system.

    glibc maps every large block anew and unmaps it when it is freed, or hands the top of its heap back; the pages of
    every activation are then faulted in and zeroed again in every step. Here that was more than half of the time of a
    forward pass (mobilenet_v2, 64 images of 224 px: 0.62 s, and 0.26 s without). The peak is what it was.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_ARENA_MAX, 1)  # the heaps of further arenas end at 64 MB, and larger blocks are mapped again
